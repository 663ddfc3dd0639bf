"""All arithmetic of a run, decided before it starts: a frozen plan for each stage, from the root of its path down."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tinyllama.config.schema import MixChoice, MixConfig, RunConfig
from tinyllama.errors import ConfigError
from tinyllama.planning.corpora import Corpus, HfModel, Inventory
from tinyllama.planning.identity import digest, meaning
from tinyllama.planning.mixture import Mixture
from tinyllama.planning.order import SampleOrder
from tinyllama.planning.schedule import Schedule, build_schedule
from tinyllama.planning.views import View, carry


@dataclass(frozen=True)
class RunPlan:
    """One stage. Positions and counts are in samples of `seq_len` tokens; tokens of life count from the root."""

    family: str
    stage: str
    digest: str
    meaning: Mapping[str, Any]
    parent: "RunPlan | None"
    origin: HfModel | None
    """What a run without parent starts from; None: random weights."""
    seq_len: int
    view: View
    """What its samples are made of, which were prepared at a length of their own."""
    batch_samples: int
    steps: int
    start_tokens: int
    """Tokens of life before the first step."""
    ramp_tokens: int
    start_weights: Mapping[str, float]
    end_weights: Mapping[str, float]
    start_draws: Mapping[str, int]
    """Draws of every corpus from the root until the first step, all in samples of this stage."""
    corpora: Mapping[str, Corpus]
    seed: int
    lanes: int
    window: int
    schedule: Schedule

    @property
    def name(self) -> str:
        """What directories and records call the stage."""
        return f"{self.stage}-{self.digest[:12]}"

    @property
    def samples(self) -> int:
        return self.steps * self.batch_samples

    @property
    def batch_tokens(self) -> int:
        return self.batch_samples * self.seq_len

    @property
    def tokens(self) -> int:
        return self.samples * self.seq_len

    @property
    def end_tokens(self) -> int:
        return self.start_tokens + self.tokens

    @property
    def provisional(self) -> bool:
        """Whether something that this plan stands on has not been prepared yet."""
        unprepared = any(not corpus.prepared for corpus in self.corpora.values())
        return unprepared or (self.parent is not None and self.parent.provisional)

    @property
    def path(self) -> "tuple[RunPlan, ...]":
        """This plan and its ancestors, the root first."""
        return (*(self.parent.path if self.parent else ()), self)

    @cached_property
    def order(self) -> SampleOrder:
        """Which samples the stage reads, at any position."""
        ramp_samples = self.ramp_tokens / self.seq_len
        knots = [(0.0, self.start_weights)] if ramp_samples else []
        return SampleOrder(
            Mixture(tuple(self.corpora), [*knots, (ramp_samples, self.end_weights)]),
            {name: corpus.shard_samples for name, corpus in self.corpora.items()},
            seed=self.seed,
            lanes=self.lanes,
            window=self.window,
            start_draws=self.start_draws,
            view=self.view,
        )

    def weights_at(self, position: int) -> dict[str, float]:
        """The mixture's fractions at a position."""
        ramp_samples = self.ramp_tokens / self.seq_len
        way = min(1.0, position / ramp_samples) if ramp_samples else 1.0
        return {
            name: self.start_weights.get(name, 0.0) * (1 - way) + self.end_weights.get(name, 0.0) * way
            for name in self.corpora
        }


def make_plan(path: Sequence[RunConfig], inventory: Inventory) -> RunPlan:
    """The plan of the last stage of `path`, whose ancestors come before it, the root first.

    Raises:
        ConfigError: a setting that only arithmetic can judge.
    """
    plan: RunPlan | None = None
    for config in path:
        plan = _extend(plan, config, inventory)
    assert plan is not None
    return plan


def target_weights(config: RunConfig) -> dict[str, float]:
    """Fractions of the mixture that a stage ends with; corpora of weight 0 are left out."""
    return _fractions(config.root_mix if config.stage.mix is MixChoice.root else config.data_mix)


def _fractions(mix: MixConfig) -> dict[str, float]:
    total = sum(mix.weights.values())
    # Rounded so that 15 of 100 and 0.15 of 1 mean the same.
    return {name: round(weight / total, 12) for name, weight in sorted(mix.weights.items()) if weight}


def _extend(parent: RunPlan | None, config: RunConfig, inventory: Inventory) -> RunPlan:
    stage, seq_len, end_weights = config.stage, config.model.seq_len, target_weights(config)
    view = View.of(config.packing.seq_len, seq_len)
    position = _fork_position(parent, config) if parent else 0
    origin = inventory.origin if parent is None else None
    start_weights = end_weights
    if stage.ramp_tokens and (parent or origin):
        start_weights = parent.weights_at(position) if parent else _fractions(config.root_mix)
    used = [name for name in inventory.corpora if end_weights.get(name) or start_weights.get(name)]
    ancestry = parent.digest if parent else f"hf:{origin.digest}" if origin else None
    what = meaning(config, end_weights, inventory, ancestry, start_weights if origin and stage.ramp_tokens else None)
    return RunPlan(
        family=config.family,
        stage=stage.name,
        digest=digest(what),
        meaning=what,
        parent=parent,
        origin=origin,
        seq_len=seq_len,
        view=view,
        batch_samples=stage.batch_tokens // seq_len,
        steps=max(1, round(stage.tokens / stage.batch_tokens)),
        start_tokens=parent.start_tokens + position * parent.seq_len if parent else 0,
        ramp_tokens=stage.ramp_tokens,
        start_weights=start_weights,
        end_weights=end_weights,
        start_draws=_ledger(parent, position, view, config.order.lanes, inventory) if parent else {},
        corpora={name: inventory.corpora[name] for name in used},
        seed=config.seed,
        lanes=config.order.lanes,
        window=config.order.window,
        schedule=build_schedule(config.schedule, config.optimizer),
    )


def _ledger(parent: RunPlan, position: int, view: View, lanes: int, inventory: Inventory) -> dict[str, int]:
    """What has been drawn when the parent stands at `position`, in samples of its child's view."""
    draws = parent.order.draws_before(position)
    return carry(draws, {name: inventory.corpora[name].shard_samples for name in draws}, lanes, parent.view, view)


def _fork_position(parent: RunPlan, config: RunConfig) -> int:
    """The position of the parent that a stage goes on from: its end, or the first step at or after the fork."""
    fork = config.stage.fork_at_tokens
    if fork is None:
        return parent.samples
    if not parent.start_tokens < fork <= parent.end_tokens:
        raise ConfigError(
            f"stage.fork_at_tokens={fork} lies outside of stage {parent.stage}, which goes from {parent.start_tokens} "
            f"to {parent.end_tokens} tokens; choose a position inside"
        )
    steps = -(-(int(fork) - parent.start_tokens) // parent.batch_tokens)
    return steps * parent.batch_samples
