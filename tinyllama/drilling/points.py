"""Where a run is killed, and on what it goes on. Seeded, and pure."""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from tinyllama.config.checks import processes_per_node
from tinyllama.config.schema import RunConfig
from tinyllama.errors import ConfigError
from tinyllama.planning.memory import estimate_memory
from tinyllama.planning.plan import RunPlan
from tinyllama.world import visible_gpus

During = Literal["start-up", "step", "checkpoint"]
DURING: tuple[During, ...] = ("start-up", "step", "checkpoint")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1)

STEPS_TO_SPARE = 2
"""A run is killed so many steps before its last one at the latest: it must not end while the signal is on its way."""

_WORLDS = (1, 2, 4)


@dataclass(frozen=True)
class Kill:
    """A signal at a point of a run."""

    signal: signal.Signals
    during: During
    step: int
    """The last step before it; of no account during start-up."""
    way: float
    """How far into the start-up, or into the step after `step`, from 0 to 1."""


def deal_kills(counts: Sequence[int], steps: int, dice: Random) -> list[list[Kill]]:
    """For several runs of `steps` steps so many kills each, in the order in which a run meets them.

    Of three in a row, over all runs, each has another signal and meets its run in another phase; nine are all kinds.
    """
    kinds = _kinds(dice)
    return [
        [Kill(number, during, step, dice.random()) for step, (during, number) in zip(places, kinds, strict=False)]
        for places in [_places(count, steps, dice) for count in counts]
    ]


def _places(count: int, steps: int, dice: Random) -> list[int]:
    """Steps before which there are some to spare, ascending; each once if there are enough."""
    before = range(1, max(2, steps - STEPS_TO_SPARE))
    return sorted(dice.sample(before, count) if count <= len(before) else dice.choices(before, k=count))


def _kinds(dice: Random) -> Iterator[tuple[During, signal.Signals]]:
    while True:
        phases, signals = dice.sample(DURING, 3), dice.sample(SIGNALS, 3)
        for turn in range(3):
            yield from zip(phases, signals[turn:] + signals[:turn], strict=True)


@dataclass(frozen=True)
class Placement:
    """On how many ranks a life runs, each taking so many samples at a time."""

    world: int
    micro_batch: int

    @property
    def overrides(self) -> list[str]:
        return [f"++cluster.processes={self.world}", f"++cluster.micro_batch={self.micro_batch}"]


def own_placement(config: RunConfig) -> Placement:
    """The person's."""
    return Placement(processes_per_node(config.cluster), config.cluster.micro_batch)


def other_placements(config: RunConfig, plan: RunPlan, dice: Random) -> list[Placement]:
    """Others that do the same, a world each, the person's own world last: the machine and the batch allow them.

    Raises:
        ConfigError: `drill.worlds` has one that they do not allow.
    """
    own = own_placement(config)
    _check_worlds(config.drill.worlds, plan.batch_samples)
    worlds = config.drill.worlds or sorted(_possible_worlds(own.world), key=lambda world: (world == own.world, world))
    placements = []
    for world in worlds:
        sizes = _micro_batches(config, plan, world)
        others = [size for size in sizes if Placement(world, size) != own][:2] or sizes
        if others and (config.drill.worlds or Placement(world, others[0]) != own):
            placements.append(Placement(world, dice.choice(others)))
    return placements


def _check_worlds(worlds: Sequence[int], batch_samples: int) -> None:
    gpus = visible_gpus()
    for world in worlds:
        if world < 1 or batch_samples % world:
            raise ConfigError(
                f"drill.worlds={worlds}: {world} ranks cannot share a batch of {batch_samples} samples evenly; "
                f"choose divisors of {batch_samples}"
            )
        if gpus and world > gpus:
            raise ConfigError(f"drill.worlds={worlds}: {world} ranks need as many GPUs, and {gpus} are visible")


def _possible_worlds(own: int) -> set[int]:
    gpus = visible_gpus()
    return {own, gpus, *(world for world in _WORLDS if world <= gpus)} if gpus else {own, *_WORLDS}


def _micro_batches(config: RunConfig, plan: RunPlan, world: int) -> list[int]:
    """Those of a world that cut the batch evenly and fit into memory, the largest first; none above the person's."""
    each, rest = divmod(plan.batch_samples, world)
    if rest:
        return []
    sizes = [size for size in range(config.cluster.micro_batch, 0, -1) if each % size == 0]
    room = config.cluster.gpu_memory_gib
    return [size for size in sizes if room is None or _need_gib(config, Placement(world, size)) <= room]


def _need_gib(config: RunConfig, placement: Placement) -> float:
    cluster = replace(config.cluster, processes=placement.world, micro_batch=placement.micro_batch)
    return estimate_memory(replace(config, cluster=cluster)).gib
