"""A run that was broken beside the one that was not. Each check tells what it found, or the first difference."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tinyllama.checkpoint.layout import RunFolder
from tinyllama.checkpoint.manifest import MANIFEST, Checkpoint, read_checkpoint
from tinyllama.data.reporter import silent
from tinyllama.errors import DamageError
from tinyllama.planning.identity import flatten
from tinyllama.planning.plan import RunPlan
from tinyllama.proof.checks import examine
from tinyllama.proof.examination import Check, Examination
from tinyllama.proof.record import read_records

_OF_THE_MOMENT = {"time", "tokens_per_second", "data_wait", "mfu"}
"""What a line of metrics.jsonl says of the machine."""


@dataclass
class Comparison:
    """Of one run with the unbroken one. `tolerance` is relative and for its numbers; 0 asks for the same bits."""

    unbroken: RunFolder
    broken: RunFolder
    plan: RunPlan
    tolerance: float
    examination: Examination = field(default_factory=Examination)
    max_loss_difference: float | None = None
    """Over the steps that both have; None where there are none."""

    def look(self) -> None:
        """Compare; the runs are not needed any more after it."""
        checks = {
            "samples": self._samples,
            "metrics": self._metrics,
            "order": self._order,
            **({"weights": self._weights} if self.tolerance == 0 else {}),
            "verify": self._verify,
        }
        for name, check in checks.items():
            self.examination.check(name, check)
        self.max_loss_difference = self._loss_difference()

    @property
    def checks(self) -> list[Check]:
        return self.examination.checks

    def found_equal(self, name: str) -> bool:
        """Whether a check was made and all was well."""
        return any(check.ok for check in self.checks if check.name == name)

    def _loss_difference(self) -> float | None:
        try:
            ours, theirs = (_by_step(folder.metrics) for folder in (self.broken, self.unbroken))
            pairs = [(line["loss"], theirs[step]["loss"]) for step, line in ours.items() if step in theirs]
            # Of a step that was skipped the loss may be missing.
            differences = [abs(one - other) for one, other in pairs if one is not None and other is not None]
        except (DamageError, KeyError, TypeError):
            return None
        return max(differences, default=None)

    def _samples(self) -> str:
        """What each step was trained on."""
        pairs = zip_longest(_lines(self.unbroken.samples), _lines(self.broken.samples))
        for step, (expected, found) in enumerate(pairs, 1):
            if expected != found:
                where, before, after = _first_difference(expected, found)
                raise DamageError(f"{self.broken.samples}: step {step}: {where} is {after}, unbroken {before}")
        return f"the same {self.plan.samples:,} samples in the same order"

    def _metrics(self) -> str:
        """Each step once, and what was measured of it."""
        unbroken, broken = (self._whole_journal(folder) for folder in (self.unbroken, self.broken))
        for before, after in zip(unbroken, broken, strict=True):
            self._compare_step(_measured(before), _measured(after))
        how = "to the last bit" if self.tolerance == 0 else f"within {self.tolerance:g}"
        return f"steps 1 to {self.plan.steps}, each once; losses and norms are equal {how}"

    def _whole_journal(self, folder: RunFolder) -> list[dict[str, Any]]:
        lines = list(_lines(folder.metrics))
        steps = [line.get("step") for line in lines]
        for expected, step in zip_longest(range(1, self.plan.steps + 1), steps):
            if step != expected:
                raise DamageError(f"{folder.metrics}: step {expected} should come, but there is {step}")
        return lines

    def _compare_step(self, unbroken: Mapping[str, Any], broken: Mapping[str, Any]) -> None:
        for name in {**unbroken, **broken}:
            before, after = unbroken.get(name), broken.get(name)
            if not _equal(before, after, self.tolerance):
                raise DamageError(f"{self.broken.metrics}: step {broken['step']}: {name} is {after}, unbroken {before}")

    def _order(self) -> str:
        """All samples from the root to the end, as one hash."""
        before, after = (self._end(folder).order_chain for folder in (self.unbroken, self.broken))
        if before != after:
            raise DamageError(f"{self.broken.path}: the order chain at the end is {after[:12]}, unbroken {before[:12]}")
        return f"the order chain at the end is {after[:12]} in both"

    def _weights(self) -> str:
        """The state at the end, file by file, each as its manifest vouches for."""
        before, after = (self._end(folder).files for folder in (self.unbroken, self.broken))
        for name in {**before, **after}:
            if before.get(name) != after.get(name):
                here, there = (files.get(name, {}).get("sha256", "missing")[:12] for files in (after, before))
                end = self.broken.checkpoint(self.plan.end_tokens)
                raise DamageError(f"{end / name} has the digest {here}, unbroken {there}")
        return f"weights and optimizer at the end are the same bits: {', '.join(after)}"

    def _verify(self) -> str:
        """The broken run by itself; what it stands on is the affair of others."""
        examination = Examination()
        checks = examination.checks
        records = read_records(self.broken, examination)
        if all(check.ok for check in checks):
            checks += examine(records, silent)
        mine = [check for check in checks if check.name.startswith(f"{self.plan.name}: ") or ":" not in check.name]
        for check in mine:
            if not check.ok:
                raise DamageError(f"{check.name}: {check.detail}")
        return f"{len(mine)} checks are well"

    def _end(self, folder: RunFolder) -> Checkpoint:
        if self.plan.end_tokens not in folder.checkpoint_tokens():
            raise DamageError(f"{folder.checkpoint(self.plan.end_tokens) / MANIFEST} is missing")
        return read_checkpoint(folder, self.plan.end_tokens, self.plan.digest)


def first_measured_difference(unbroken: RunFolder, broken: RunFolder) -> int | None:
    """The first step of which something else was measured, down to the last bit."""
    ours, theirs = _by_step(broken.metrics), _by_step(unbroken.metrics)
    return next(
        (step for step, line in theirs.items() if step in ours and _measured(line) != _measured(ours[step])), None
    )


def _measured(line: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flatten(line).items() if name not in _OF_THE_MOMENT}


def _equal(one: Any, other: Any, tolerance: float) -> bool:
    """Tolerance is for measured numbers only."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=tolerance)
    return bool(one == other)


def _by_step(path: Path) -> dict[int, dict[str, Any]]:
    return {line["step"]: line for line in _lines(path)}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield dict(json.loads(line))
    except (OSError, ValueError, TypeError) as error:
        raise DamageError(f"{path} cannot be read ({error})") from error


def _first_difference(expected: Any, found: Any) -> tuple[str, Any, Any]:
    """Of two lines of samples.jsonl: the field, and its two values."""
    if expected is None or found is None:
        return "the line", expected and "there", found and "there"
    for name in {**expected, **found}:
        before, after = expected.get(name), found.get(name)
        if before != after and isinstance(before, list) and isinstance(after, list):
            at = next(at for at, pair in enumerate(zip_longest(before, after)) if pair[0] != pair[1])
            before, after = (each[at] if at < len(each) else "missing" for each in (before, after))
            return f"{name}[{at}]", before, after
        if before != after:
            return name, before, after
    raise AssertionError("the lines are equal")
