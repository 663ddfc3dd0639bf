"""The numerical watch: which steps change the weights, and what becomes of a run whose steps do not.

docs/watch.md tells the rules. All ranks decide alike, because they decide on what was brought together from all.
"""

import logging
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from tinyllama.checkpoint.manifest import Checkpoint
from tinyllama.config.schema import WatchConfig, WatchMode
from tinyllama.data.loader import MicroBatch
from tinyllama.errors import TinyllamaError
from tinyllama.planning.order import SampleOrder
from tinyllama.training.hooks import Hook
from tinyllama.training.journal import finite, open_journal, samples_of, write_line
from tinyllama.training.metrics import StepReport
from tinyllama.world import World

log = logging.getLogger(__name__)

_LEAST_DEVIATION = 0.01
"""Of a logarithm: what varies by less than a percent is taken to vary by so much, else it could never change."""

_MOST_DEVIATIONS = 3.0
"""As so many an outlier counts that was applied all the same, so that it does not hide the next."""


class Setback(TinyllamaError):
    """So many steps in a row were skipped that going on is of no use."""

    def __init__(self, skipped: int, last: int, applied: int, why: str, corpora: Mapping[str, int]):
        self.last, self.applied = last, applied
        """The last step of all, and the last that changed the weights: no later checkpoint has others."""
        read = ", ".join(f"{name} {count / sum(corpora.values()):.0%}" for name, count in sorted(corpora.items()))
        super().__init__(
            f"{skipped} steps in a row were skipped, {last - skipped + 1} to {last}; at the last of them {why}; "
            f"they read {read}"
        )

    def final(self, found: Checkpoint | None, config: WatchConfig, skipped: Path) -> TinyllamaError:
        """What ends the run; `found` is the checkpoint from which it has been tried again in vain."""
        if not config.rollback:
            why = "watch.rollback=false says not to go back"
        elif found is None:
            why = "there is no checkpoint from before them to go back to"
        else:
            why = f"going back to step {found.progress.step} has not helped"
        others = "" if config.skip_window else ", watch.skip_window=true to pass over such samples"
        return TinyllamaError(
            f"{self}.\nThe run ends here, for {why}. Their samples are in {skipped}: look at them first. Then try a "
            f"lower optimizer.learning_rate (with branch=true, as a run beside this one){others}, or, if such values "
            f"are to be expected, watch.deviations above {config.deviations:g} or watch.mode=warn"
        )


@dataclass
class Usual:
    """Mean and variance of the logarithm of a positive quantity: plain ones over a first window of steps, from then on
    older steps fade at the rate of a window. Of logarithms, so that a loss of 10 and one of 2 are judged alike.
    """

    steps: int = 0
    mean: float = 0.0
    variance: float = 0.0

    @property
    def value(self) -> float:
        return math.exp(self.mean)

    def deviations(self, value: float) -> float:
        """How many standard deviations a value lies above the mean."""
        return (_log(value) - self.mean) / self._deviation

    def add(self, value: float, window: int) -> None:
        distance = _log(value) - self.mean
        if self.steps >= window:
            most = _MOST_DEVIATIONS * self._deviation
            distance = max(-most, min(distance, most))
        self.steps += 1
        share = 1 / min(self.steps, window)
        self.mean += share * distance
        self.variance = (1 - share) * (self.variance + share * distance**2)

    @property
    def _deviation(self) -> float:
        return max(math.sqrt(self.variance), _LEAST_DEVIATION)


@dataclass
class WatchState:
    """All that later decisions depend on; it is kept in checkpoints, so that a resumed run decides as the unbroken."""

    loss: Usual = field(default_factory=Usual)
    grad_norm: Usual = field(default_factory=Usual)
    applied: int = 0
    """The last step that changed the weights."""
    passing_until: int = 0
    """Up to this step samples are passed over without training on them."""
    went_back_to: int = 0
    """The last step from which training was taken up again; 0 if it never was."""

    @classmethod
    def read(cls, fields: Mapping[str, Any] | None, step: int) -> "WatchState":
        """What a checkpoint of the same run at a step has kept; None where there was nothing to keep yet."""
        if fields is None:
            return cls(applied=step)
        usual = {name: Usual(**fields[name]) for name in ("loss", "grad_norm")}
        return cls(**{**fields, **usual})

    def document(self) -> dict[str, Any]:
        return asdict(self)


class Watch(Hook):
    """Judges each step before it changes the weights, and records those that are skipped.

    Args:
        state: of the checkpoint that the run goes on from.
        path: of skipped.jsonl.
        last_step: the last one that was taken before; later lines of the file are cut off.
    """

    def __init__(
        self, config: WatchConfig, state: WatchState, path: Path, last_step: int, order: SampleOrder, world: World
    ):
        self.state = state
        self.objection: str | None = None
        """What is to be said against the step that was judged last."""
        self._config, self._order, self._world = config, order, world
        self._corpora: Counter[str] = Counter()
        self._file = open_journal(path, last_step) if world.is_main else None

    def trains(self, step: int) -> bool:
        """Whether a step is to be trained at all, or its samples are passed over."""
        return step > self.state.passing_until

    def judge(self, step: int, measure: Callable[[Tensor], float], losses: Tensor, grad_norm: float) -> bool:
        """Whether a step may change the weights. `measure` tells the loss over all ranks from this rank's `losses`."""
        loss = measure(losses)
        self.objection = _not_finite(loss, grad_norm) if self.trains(step) else "passed over after going back"
        if self.objection is not None:
            return False
        if self._config.mode is not WatchMode.off:
            self.objection = self._unusual(loss, grad_norm)
        return self.objection is None or self._config.mode is WatchMode.warn

    def after_step(self, report: StepReport, batch: Sequence[MicroBatch]) -> None:
        """Raises Setback when patience has come to its end."""
        state, step = self.state, report.progress.step
        if not report.applied:
            self._record(report, batch)
            if self.trains(step):
                self._count(report)
            return
        if report.objection is not None:
            self._say(f"step {step} is unusual: {report.objection}")
        state.applied = step
        self._corpora.clear()
        for usual, value in ((state.loss, report.loss), (state.grad_norm, report.grad_norm)):
            usual.add(value, self._config.window_steps)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _unusual(self, loss: float, grad_norm: float) -> str | None:
        config, state = self._config, self.state
        for name, value, usual in (("loss", loss, state.loss), ("gradient norm", grad_norm, state.grad_norm)):
            above = usual.deviations(value)
            if usual.steps >= config.window_steps and above > config.deviations:
                return f"{name} {value:.4g} is {above:.1f} deviations above its usual {usual.value:.4g}"
        return None

    def _count(self, report: StepReport) -> None:
        """One more step was skipped: how many are they in a row?"""
        step, why = report.progress.step, str(report.objection)
        self._say(f"step {step} was skipped on all ranks: {why}")
        self._corpora.update(report.corpus_samples)
        skipped = step - max(self.state.applied, self.state.passing_until)
        if skipped >= self._config.patience_steps:
            raise Setback(skipped, step, self.state.applied, why, +self._corpora)

    def _record(self, report: StepReport, batch: Sequence[MicroBatch]) -> None:
        samples = samples_of(report, batch, self._order, self._world)
        if self._file is not None:
            line = {
                "step": report.progress.step,
                "tokens": report.progress.tokens,
                "why": report.objection,
                "loss": finite(report.loss),
                "grad_norm": finite(report.grad_norm),
                "samples": samples,
            }
            write_line(self._file, line)

    def _say(self, text: str) -> None:
        if self._world.is_main:
            log.warning("%s", text)


def _not_finite(loss: float, grad_norm: float) -> str | None:
    for name, value in (("loss", loss), ("gradient", grad_norm)):
        if not math.isfinite(value):
            return f"its {name} is not finite"
    return None


def _log(value: float) -> float:
    return math.log(max(value, sys.float_info.min))
