"""Many steps as few points, without losing what sticks out. Pure."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllama.planning.mixture import Mixture
from tinyllama.reporting.pages.family import Reals, Run

BUCKETS = 500
"""Of a series at most; each has a mean, a lowest and a highest value."""


class Buckets:
    """Steps in groups of neighbours, as even as can be; up to BUCKETS steps each is a group of its own."""

    def __init__(self, tokens: NDArray[np.int64]):
        self._count = len(tokens)
        groups = min(self._count, BUCKETS)
        self._starts = np.arange(groups) * self._count // max(groups, 1)
        ends = np.append(self._starts[1:], self._count) - 1
        self.tokens = tokens[ends] if groups else tokens
        """Of life, at the end of each."""

    @property
    def steps(self) -> int:
        """In the largest."""
        return -(-self._count // max(len(self._starts), 1))

    def means(self, values: Reals) -> Reals:
        """NaN where nothing was measured."""
        known = np.isfinite(values)
        with np.errstate(invalid="ignore"):
            return self._sums(np.where(known, values, 0.0)) / self._sums(known.astype(np.float64))

    def sums(self, values: Reals) -> Reals:
        return self._sums(np.nan_to_num(values))

    def series(self, values: Reals) -> dict[str, list[float | None]]:
        """{"mean"}, and where a group has several steps also {"low", "high"}."""
        if not np.isfinite(values).any():
            return {}
        if len(self._starts) == self._count:
            return {"mean": numbers(values)}
        finite = np.where(np.isfinite(values), values, np.nan)
        return {
            "mean": numbers(self.means(values)),
            "low": numbers(np.fmin.reduceat(finite, self._starts)),
            "high": numbers(np.fmax.reduceat(finite, self._starts)),
        }

    def _sums(self, values: Reals) -> Reals:
        return np.add.reduceat(values, self._starts) if len(self._starts) else values


def applied(run: Run, name: str) -> Reals:
    """A metric without the steps that were skipped, which are told one by one."""
    values = run.steps.value(name)
    skipped = [remark.step for remark in run.remarks if remark.skipped]
    return np.where(np.isin(run.steps.step, skipped), np.nan, values) if skipped else values


def sparse(run: Run, name: str) -> dict[str, list[Any]]:
    """A metric that is measured now and then: its own points, {"tokens", "mean"}."""
    values = run.steps.value(name)
    known = np.flatnonzero(np.isfinite(values))
    buckets = Buckets(run.steps.tokens[known])
    return {"tokens": buckets.tokens.tolist(), **buckets.series(values[known])}


def declared_mixture(run: Run) -> Mixture:
    """That of the run's plan, over samples from its start."""
    corpora: Mapping[str, Mapping[str, float]] = run.plan["corpora"]
    ramp_samples = run.plan["ramp_tokens"] / run.plan["seq_len"]
    start = {name: each["weight_start"] for name, each in corpora.items()}
    end = {name: each["weight_end"] for name, each in corpora.items()}
    return Mixture(tuple(corpora), [*([(0.0, start)] if ramp_samples else []), (ramp_samples, end)])


def greatest_deviation(run: Run) -> float | None:
    """Samples by which a corpus' count was ever off the integral of its weight; None where steps are missing."""
    names = list(run.plan["corpora"])
    counts = np.stack([run.steps.value(f"corpus_samples/{name}") for name in names], axis=-1)
    sampled = np.nan_to_num(counts).cumsum(axis=0)
    position = (run.steps.tokens - run.start_tokens) // run.plan["seq_len"]
    if not len(position) or (sampled.sum(axis=-1) != position).any():
        return None
    return float(np.abs(sampled - declared_mixture(run).integral(position)).max())


def numbers(values: Reals, digits: int = 5) -> list[float | None]:
    """For JSON, with as many digits as a picture can use."""
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values.tolist()]
