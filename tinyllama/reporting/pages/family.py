"""A family as a report knows it, wherever that was read from: plain values and arrays. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Steps:
    """What was measured of a run, by step; NaN where it was not."""

    step: NDArray[np.int64]
    tokens: NDArray[np.int64]
    """Of life, after the step."""
    seconds: Reals
    """Since 1970, when the step was written down."""
    values: Mapping[str, Reals]
    """By name, members of a group as "validation/slimpajama"."""

    def __len__(self) -> int:
        return len(self.step)

    def value(self, name: str) -> Reals:
        """A metric, all NaN if it was never measured."""
        return self.values[name] if name in self.values else np.full(len(self), np.nan)

    def group(self, name: str) -> dict[str, Reals]:
        """The members of a group that were ever measured, in the order of their own names."""
        prefix = f"{name}/"
        known = sorted(key for key, each in self.values.items() if key.startswith(prefix) and np.isfinite(each).any())
        return {key.removeprefix(prefix): self.values[key] for key in known}

    def last(self, name: str) -> float | None:
        """The last value of a metric that was measured."""
        known = self.value(name)[np.isfinite(self.value(name))]
        return float(known[-1]) if len(known) else None


@dataclass(frozen=True)
class Remark:
    """A step that was skipped, or applied although it was unusual."""

    step: int
    tokens: int
    skipped: bool
    why: str
    loss: float | None
    """None where it was no finite number."""


@dataclass(frozen=True)
class Pause:
    """A time in which nothing was trained, before a step."""

    step: int
    tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """One node of the tree."""

    digest: str
    meaning: Mapping[str, Any]
    """As identity.json has it."""
    plan: Mapping[str, Any]
    """As plan.json has it."""
    finished: bool
    steps: Steps
    remarks: tuple[Remark, ...] = ()
    unreadable_lines: int = 0
    """Of its journal."""
    checkpoints: tuple[int, ...] | None = None
    """Positions of life; None where the source does not tell."""
    ranks: int | None = None
    evaluations: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """By the position of the checkpoint."""
    place: str
    """Where its record lies, in words for people."""

    @property
    def stage(self) -> str:
        return str(self.meaning["stage"]["name"])

    @property
    def name(self) -> str:
        return f"{self.stage}-{self.digest[:12]}"

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(self.plan["variants"])

    @property
    def parent(self) -> str | None:
        """Its digest; None for a run that starts from random weights or from a Hugging Face folder."""
        found = self.meaning.get("parent")
        return None if found is None or found.startswith("hf:") else str(found)

    @property
    def start_tokens(self) -> int:
        return int(self.plan["start_tokens"])

    @property
    def end_tokens(self) -> int:
        """Where it ends, or is to end."""
        return int(self.plan["end_tokens"])

    @property
    def trained_tokens(self) -> int:
        """In this run, so far."""
        return int(self.steps.tokens[-1]) - self.start_tokens if len(self.steps) else 0

    @property
    def evaluation(self) -> Mapping[str, Any] | None:
        """That of its last checkpoint that was evaluated."""
        return self.evaluations[max(self.evaluations)] if self.evaluations else None

    @cached_property
    def hours(self) -> float | None:
        """Of training, all steps together; None if no step tells its speed."""
        rates = self.steps.value("tokens_per_second")
        known = rates[rates > 0]
        # The mean over the steps that were recorded: all of them in a journal, some of them in a tracking store.
        return self.trained_tokens * float(np.mean(1 / known)) / 3600 if len(known) else None

    @property
    def rank_hours(self) -> float | None:
        return None if self.hours is None or self.ranks is None else self.hours * self.ranks

    @property
    def has_gpus(self) -> bool:
        return (self.plan.get("memory") or {}).get("gib_available") is not None

    @cached_property
    def pauses(self) -> tuple[Pause, ...]:
        """Over ten seconds and ten times as long as a step, apart from what a validation usually takes."""
        steps, rates = self.steps, self.steps.value("tokens_per_second")
        if len(steps) < 2:
            return ()
        validated = np.zeros(len(steps), bool)
        for losses in steps.group("validation").values():
            validated |= np.isfinite(losses)
        busy = np.diff(steps.tokens) / rates[1:]
        idle = np.diff(steps.seconds) - busy
        if not np.isfinite(idle).any():  # of before times or speeds were written down
            return ()
        validating = validated[1:] & np.isfinite(idle)
        if validating.any():
            idle[validating] -= np.median(idle[validating])
        with np.errstate(invalid="ignore"):
            found = np.flatnonzero(idle > max(10.0, 10 * float(np.nanmedian(busy))))
        return tuple(Pause(int(steps.step[at + 1]), int(steps.tokens[at]), float(idle[at])) for at in found)


@dataclass(frozen=True)
class Family:
    """The tree, each run before those that continue it."""

    name: str
    runs: tuple[Run, ...]
    source: str
    """What it was read from, in words for people."""
    lacks: str = ""
    """What that source does not tell, in a sentence for people."""

    @classmethod
    def of(cls, name: str, runs: Iterable[Run], source: str, lacks: str = "") -> "Family":
        return cls(name, tuple(_in_tree_order(list(runs))), source, lacks)

    @cached_property
    def variants(self) -> tuple[str, ...]:
        """In the order in which the first runs name them."""
        return tuple(dict.fromkeys(name for run in self.runs for name in run.variants))

    @cached_property
    def corpora(self) -> tuple[str, ...]:
        """All that were read or validated on."""
        read = (name for run in self.runs for name in run.plan["corpora"])
        return tuple(dict.fromkeys([*read, *sorted(self._held_out)]))

    @cached_property
    def validated(self) -> tuple[str, ...]:
        """Those that were validated on."""
        return tuple(name for name in self.corpora if name in self._held_out)

    @cached_property
    def _held_out(self) -> set[str]:
        return {name for run in self.runs for name in run.steps.group("validation")}

    def parent(self, run: Run) -> Run | None:
        """The run that it continues, if the family has it."""
        return next((other for other in self.runs if other.digest == run.parent), None)

    def ancestors(self, run: Run) -> Iterator[Run]:
        """The parent first, as far as the family has them."""
        ancestor = self.parent(run)
        while ancestor is not None:
            yield ancestor
            ancestor = self.parent(ancestor)

    def children(self, run: Run) -> list[Run]:
        return [other for other in self.runs if other.parent == run.digest]

    @property
    def roots(self) -> list[Run]:
        return [run for run in self.runs if self.parent(run) is None]

    def title(self, run: Run) -> str:
        """What people call it; with some of its digest where several have the same name."""
        alike = [other for other in self.runs if (other.stage, other.variants) == (run.stage, run.variants)]
        more = f" ({run.digest[:6]})" if len(alike) > 1 else ""
        return f"{run.stage} of {listed(run.variants)}{more}"


def listed(names: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def _in_tree_order(runs: Sequence[Run]) -> list[Run]:
    """Depth first; siblings by where they begin, then in the order in which their parent names their variants."""
    known = {run.digest for run in runs}
    order: list[Run] = []

    def descend(parent: str | None, variants: Sequence[str]) -> None:
        places = {name: place for place, name in enumerate(variants)}

        def place(run: Run) -> tuple[int, int, str]:
            return run.start_tokens, min((places.get(name, len(places)) for name in run.variants), default=0), run.name

        for run in sorted((each for each in runs if _parent_in(known, each) == parent), key=place):
            order.append(run)
            descend(run.digest, run.variants)

    descend(None, ())
    return order


def _parent_in(known: set[str], run: Run) -> str | None:
    return run.parent if run.parent in known else None
