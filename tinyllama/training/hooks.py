"""Side work of training: what happens around the loop without being in it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tinyllama.checkpoint.store import CheckpointStore
from tinyllama.config.schema import CheckpointConfig, RunConfig
from tinyllama.data.loader import MicroBatch
from tinyllama.engine.zero import ZeroEngine
from tinyllama.planning.plan import RunPlan
from tinyllama.training.metrics import StepReport
from tinyllama.world import World


class Hook(ABC):
    """Called after every step, on every rank, in the order of training/run.py."""

    @abstractmethod
    def after_step(self, report: StepReport, batch: Sequence[MicroBatch]) -> None:
        """The weights are those after the step of `report`."""

    def close(self) -> None:
        """Training has ended, well or not."""


MoreHooks = Callable[[RunConfig, RunPlan, ZeroEngine, World], Sequence[Hook]]
"""Builds what rooms further down the road want to measure of a model in training. Collective."""


class Checkpointing(Hook):
    """Saves every so many tokens, at milestones, when a stop is asked for, and at the end of the stage.

    Only the last two are waited for. `order_chain` is collective and tells the chain after the step; `watch_state`
    tells what is to be kept of the numerical watch.
    """

    def __init__(
        self, engine: ZeroEngine, store: CheckpointStore, plan: RunPlan, config: CheckpointConfig,
        order_chain: Callable[[], str], watch_state: Callable[[], Mapping[str, Any] | None] = lambda: None,
    ):  # fmt: skip
        self._engine, self._store, self._plan, self._config = engine, store, plan, config
        self._order_chain, self._watch_state = order_chain, watch_state

    def after_step(self, report: StepReport, batch: Sequence[MicroBatch]) -> None:
        progress, before = report.progress, report.before
        milestone = any(before.tokens < tokens <= progress.tokens for tokens in self._config.milestones)
        leaving = report.stopping or progress.step == self._plan.steps
        if leaving or milestone or progress.crossed(before, self._config.every_tokens):
            self._store.write(progress, self._order_chain(), self._engine.snapshot, self._watch_state())
        if leaving:
            self._store.require_saved()

    def close(self) -> None:
        self._store.close()
