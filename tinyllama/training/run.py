"""One stage from start to DONE, in every rank."""

import json
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyllama.checkpoint.files import write_durably
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.checkpoint.layout import Status as RunStatus
from tinyllama.checkpoint.manifest import Checkpoint
from tinyllama.checkpoint.resume import find_start
from tinyllama.checkpoint.rollback import give_up_later, newest_until
from tinyllama.checkpoint.standing import recorded_variants
from tinyllama.checkpoint.store import CheckpointStore
from tinyllama.config.location import git_commit
from tinyllama.config.schema import Precision, RunConfig
from tinyllama.engine import heartbeat, startup
from tinyllama.engine.zero import ZeroEngine, computes_in_bf16
from tinyllama.errors import Stopped, StoppedForNow
from tinyllama.lineage.describe import record_of
from tinyllama.lineage.null import NullTracker
from tinyllama.lineage.record import RunRecord, Status, Tracker
from tinyllama.lineage.tracking import build_tracker
from tinyllama.model.attention_choice import choose
from tinyllama.model.float8 import use_float8
from tinyllama.model.hf import read_hf
from tinyllama.model.llama import Llama, build_model
from tinyllama.planning.chain import ROOT
from tinyllama.planning.flops import flops_per_token
from tinyllama.planning.memory import chosen_loss
from tinyllama.planning.plan import RunPlan
from tinyllama.planning.progress import Progress
from tinyllama.training.chain import OrderChain
from tinyllama.training.description import describe, write_plan
from tinyllama.training.display import build_display
from tinyllama.training.gate import sole_trainer
from tinyllama.training.hooks import Checkpointing, Hook, MoreHooks
from tinyllama.training.journal import Journal, Trace
from tinyllama.training.loop import grouped, train
from tinyllama.training.metrics import Meter
from tinyllama.training.micro_batch import with_fastest
from tinyllama.training.profile import Marked, Profile, Window
from tinyllama.training.pulse import Pulse
from tinyllama.training.serving import Serving
from tinyllama.training.stopping import StopRequest
from tinyllama.training.validation import Validation
from tinyllama.training.watch import Setback, Watch, WatchState
from tinyllama.units import format_seconds, format_tokens
from tinyllama.world import World

log = logging.getLogger(__name__)


def run_stage(
    config: RunConfig, plan: RunPlan, variants: Sequence[str], plain: bool = False, measuring: MoreHooks | None = None
) -> None:
    """Train a stage, from wherever it stands to its end.

    Args:
        measuring: what is measured besides the losses.

    Raises:
        Stopped: a signal asked for it; the state is saved.
        DamageError: there is no sound state to go on from.
    """
    folder = RunFolder.of(config.paths.runs, plan)
    variants = tuple(dict.fromkeys((*recorded_variants(folder), *variants)))
    with sole_trainer(folder) if World.from_environment().is_main else nullcontext():
        _run_rank(config, plan, variants, plain, measuring)


def _run_rank(
    config: RunConfig, plan: RunPlan, variants: tuple[str, ...], plain: bool, measuring: MoreHooks | None
) -> None:
    stop = StopRequest()
    world = startup.initialize(config.cluster)
    try:
        with heartbeat.doing("while looking for a checkpoint"):
            checkpoint, progress = find_start(plan, config.paths.runs, world)
        config = with_fastest(config, world, _build_model)
        with heartbeat.doing("while building the model"):
            engine = _build_engine(config, plan, world, fresh=checkpoint is None)
        if checkpoint is not None:
            with heartbeat.doing("while loading a checkpoint"):
                engine.load(checkpoint.path)
        stop.listen()
        stage = _Stage(config, plan, variants, world, engine, checkpoint, plain)
        if measuring is not None:
            stage.measuring = measuring(config, plan, engine, world)
        stage.train(progress, stop)
    finally:
        startup.finalize()


class _Stage:
    """What training a stage needs, brought together."""

    def __init__(
        self, config: RunConfig, plan: RunPlan, variants: tuple[str, ...], world: World, engine: ZeroEngine,
        checkpoint: Checkpoint | None, plain: bool,
    ):  # fmt: skip
        self.config, self.plan, self.variants, self.world, self.engine = config, plan, variants, world, engine
        self.checkpoint, self.plain = checkpoint, plain
        self.folder = RunFolder.of(config.paths.runs, plan)
        self.serving = Serving(config, plan, world)
        self.measuring: Sequence[Hook] = ()

    def train(self, progress: Progress, stop: StopRequest) -> None:
        tracker = self._tracker()
        status: Status = "FAILED"
        try:
            if self.world.is_main:
                describe(self.config, self.plan, self.variants)
                self._announce(progress)
            tracker.start(self._record(progress))
            tracker.artifacts([self.folder.identity, self.folder.plan, self.folder.config])
            with heartbeat.doing("in training"):
                status = self._train(progress, stop)
        finally:
            tracker.finish(status)
        if status == "KILLED":
            stopped = Stopped if stop.agreed_for_good else StoppedForNow
            raise stopped(f"stage {self.plan.stage} stopped after a checkpoint; the same command goes on from there")

    def _train(self, progress: Progress, stop: StopRequest) -> Status:
        started = time.monotonic()
        own = self.checkpoint if self.checkpoint and self.checkpoint.digest == self.plan.digest else None
        state = WatchState.read(own.watch if own else None, progress.step)
        while True:
            try:
                progress = self._advance(progress, state, stop)
                break
            except Setback as setback:
                progress, state = self._go_back(setback, state)
        if progress.step < self.plan.steps:
            return "KILLED"
        if self.world.is_main:
            write_plan(self.config, self.plan, self.variants, RunStatus.done)
            write_durably(self.folder.done, json.dumps(asdict(progress) | self._last_validation()) + "\n")
            self._say(f"done in {format_seconds(time.monotonic() - started)}: {self.folder.path}")
        return "FINISHED"

    def _advance(self, progress: Progress, state: WatchState, stop: StopRequest) -> Progress:
        """Train on, until the end or a stop; returns how far it came.

        Raises:
            Setback: one step after another is skipped.
        """
        config, plan = self.config, self.plan
        micro_batches = self.serving.micro_batches(progress.samples, ahead=2 * self.engine.accumulation)
        peak = config.cluster.gpu_peak_tflops
        meter = Meter(
            plan.order.names,
            plan.seq_len,
            flops_per_token(config.model),
            peak * 1e12 * self.world.size if peak else None,
            self.engine.device,
        )
        watch = Watch(config.watch, state, self.folder.skipped, progress.step, plan.order, self.world)
        store = self._store()
        with ExitStack() as stack:
            hooks = self._hooks(progress, watch, store)
            for hook in hooks:
                stack.callback(hook.close)
            stack.enter_context(closing(micro_batches))
            batches = grouped(micro_batches, self.engine.accumulation)
            try:
                return train(self.engine, batches, plan, progress, meter, watch, hooks, stop)
            except Setback:
                store.wait()  # the checkpoint to go back to may be on its way to the disk
                raise

    def _go_back(self, setback: Setback, state: WatchState) -> tuple[Progress, WatchState]:
        """Take up the last checkpoint from before the skipped steps, unless that has been tried.

        Raises:
            TinyllamaError: it was, or there is none, or it is not wanted.
        """
        config, plan = self.config.watch, self.plan
        sound_tokens = plan.start_tokens + setback.applied * plan.batch_tokens
        found = newest_until(self.folder, plan.digest, sound_tokens, self.world) if config.rollback else None
        if found is None or found.progress.step <= state.went_back_to:
            raise setback.final(found, config, self.folder.skipped) from None
        give_up_later(self.folder, found, self.world)
        self.engine.load(found.path)
        self.checkpoint, step = found, found.progress.step
        state = WatchState.read(found.watch, step)
        state.went_back_to = step
        if config.skip_window:
            state.passing_until = setback.last
        if self.world.is_main:
            passes = f", and passes over the samples up to step {setback.last}" if config.skip_window else ""
            self._say(f"{setback}; goes back to step {step}{passes}")
        return found.progress, state

    def _hooks(self, progress: Progress, watch: Watch, store: CheckpointStore) -> list[Hook]:
        """In the order in which they see a step: what measures before what writes down, what saves last."""
        config, plan, world = self.config, self.plan, self.world
        main_only: list[Hook] = []
        if world.is_main:
            main_only = [
                Journal(self.folder.metrics, progress.step),
                build_display(plan, self._label, progress.step, self.plain),
            ]
        before = self.checkpoint
        chain = OrderChain(
            before.order_chain if before else ROOT, plan.order, plan.batch_samples, world, self.engine.device
        )
        validation = Validation(
            self.engine, plan, config.validation, self.serving.held_out, config.cluster.micro_batch, world
        )
        trace = [Trace(self.folder.samples, progress.step, plan.order, world)] if config.trace else []
        saving = Checkpointing(self.engine, store, plan, config.checkpoint, chain.value, watch.state.document)
        return [
            Pulse(progress.step),
            Marked("validation", [validation, *self.measuring]),
            Marked("logging", [*main_only, *trace, chain, watch]),
            Marked("checkpoint", [saving]),
            *self._profile(progress),
        ]

    def _profile(self, progress: Progress) -> list[Hook]:
        steps_left = self.plan.steps - progress.step
        if not (self.config.profile and self.world.is_main and steps_left):
            return []
        return [Profile(self.folder, self._label, Window.of(steps_left, self.engine.accumulation))]

    def _store(self) -> CheckpointStore:
        config, plan = self.config, self.plan
        return CheckpointStore(
            self.folder, plan.digest, self.world, config.checkpoint.keep,
            protected=[plan.end_tokens, *self._milestones()], adopted=self._adopted(),
            timeout_minutes=config.cluster.timeout_minutes,
        )  # fmt: skip

    def _milestones(self) -> list[int]:
        """Positions after the steps that reach the declared milestones."""
        batch, start = self.plan.batch_tokens, self.plan.start_tokens
        return [start + -(-(tokens - start) // batch) * batch for tokens in self.config.checkpoint.milestones]

    def _announce(self, progress: Progress) -> None:
        plan = self.plan
        mix = ", ".join(f"{name} {weight:.0%}" for name, weight in plan.end_weights.items())
        self._say(
            f"{format_tokens(plan.tokens)} tokens in {plan.steps} steps of {format_tokens(plan.batch_tokens)}, from "
            f"{format_tokens(plan.start_tokens)} to {format_tokens(plan.end_tokens)} of life; {mix}"
        )
        if progress.step:
            self._say(f"goes on after step {progress.step}")

    def _say(self, text: str) -> None:
        log.info("%s: %s", self._label, text)

    @property
    def _label(self) -> str:
        """What people call the run."""
        return f"{self.plan.stage} [{', '.join(self.variants)}]"

    def _tracker(self) -> Tracker:
        runs = Path(self.config.paths.runs)
        return build_tracker(self.config.tracking, runs) if self.world.is_main else NullTracker()

    def _record(self, progress: Progress) -> RunRecord:
        adopted = self._adopted()
        return record_of(
            self.config,
            self.plan,
            self.variants,
            self.folder,
            ranks=self.world.size,
            first_step=progress.step,
            git_commit=git_commit(),
            adopted_from=adopted["path"] if adopted else None,
        )

    def _adopted(self) -> Mapping[str, Any] | None:
        """Where the run's first state came from, if it was not trained here; a parent's is the parent's affair."""
        before = self.checkpoint
        return before.adopted if before and before.digest == self.plan.digest else None

    def _last_validation(self) -> dict[str, Any]:
        with self.folder.metrics.open(encoding="utf-8") as file:
            last = next(iter(deque(file, maxlen=1)), "{}")  # a run that was adopted at its end has taken no step
        return {"validation": json.loads(last).get("validation", {})}


def _build_engine(config: RunConfig, plan: RunPlan, world: World, fresh: bool) -> ZeroEngine:
    """`fresh`: the weights are needed, no checkpoint will replace them."""
    model = _build_model(config)
    if fresh and plan.origin is not None:
        model.load_state_dict(read_hf(plan.origin, config.model))
    elif fresh:
        model.initialize(config.seed)
    accumulation = plan.batch_samples // (config.cluster.micro_batch * world.size)
    return ZeroEngine(model, config.optimizer, config.cluster, accumulation, world)


def _build_model(config: RunConfig) -> Llama:
    cluster, device = config.cluster, startup.device()
    bf16 = computes_in_bf16(cluster, device)
    attention = choose(cluster.attention, config.model, cluster.micro_batch, bf16, device)
    model = build_model(config.model, attention, device, cluster.activation_checkpointing, chosen_loss(config))
    if cluster.precision is Precision.fp8:
        use_float8(model)
    return model
