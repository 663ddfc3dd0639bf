"""The new lines of a run's journal (training/journal.py writes it), as measurements."""

import json
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from tinyllama.lineage.record import Measurement

LINES_AT_A_TIME = 1000
WARM_UP_STEPS = 5
"""Steps of a life whose speed tells of compilation and empty caches."""


class Tail:
    """Follows a journal as it grows, and starts over when a resumed run has replaced it.

    Args:
        first_step: steps that were taken before this life.
        every_steps: steps without a validation or an evaluation are taken once in so many.
    """

    def __init__(self, path: Path, first_step: int, every_steps: int) -> None:
        self._path, self._first_step, self._every_steps = path, first_step, every_steps
        self._start_over(None)

    def _start_over(self, inode: int | None) -> None:
        self._inode, self._offset = inode, 0
        self._rates = array("d")
        self.last_milliseconds: int | None = None
        """When the last step was written down."""

    def measurements(self) -> Iterator[list[Measurement]]:
        """What has been added, in pieces. A piece counts as taken when the next one is asked for."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            state = self._path.stat()
            if state.st_ino != self._inode or state.st_size < self._offset:
                self._start_over(state.st_ino)
            file.seek(self._offset)
            while lines := _whole_lines(file.readlines(LINES_AT_A_TIME * 500)):
                steps = [json.loads(line) for line in lines]
                yield [measurement_of(step) for step in steps if self._is_due(step)]
                self._offset += sum(map(len, lines))
                self._rates.extend(step["tokens_per_second"] for step in steps if step["step"] > self._first_step)
                self.last_milliseconds = milliseconds_of(steps[-1])

    def first_milliseconds(self) -> int | None:
        """When the first step of all was written down."""
        if not self._path.is_file():
            return None
        with self._path.open("rb") as file:
            lines = _whole_lines([file.readline()])
        return milliseconds_of(json.loads(lines[0])) if lines else None

    def typical_rate(self) -> float | None:
        """Tokens per second in the middle of what this life did, warm-up apart; None if it took no step."""
        warm_up = min(WARM_UP_STEPS, len(self._rates) // 2)
        return median(self._rates[warm_up:]) if self._rates else None

    def _is_due(self, step: Mapping[str, Any]) -> bool:
        return step["step"] % self._every_steps == 0 or bool(step.get("validation") or step.get("evaluation"))


def measurement_of(step: Mapping[str, Any]) -> Measurement:
    """The numbers of a line, members of a group as "validation/slimpajama"."""
    values: dict[str, float] = {}
    for name, value in step.items():
        if isinstance(value, Mapping):
            values |= {f"{name}/{member}": float(entry) for member, entry in value.items()}
        elif isinstance(value, int | float) and name not in ("step", "time"):
            values[name] = float(value)
    return Measurement(step["step"], milliseconds_of(step), values)


def milliseconds_of(step: Mapping[str, Any]) -> int:
    """Since 1970; 0 in journals that were begun before times were written down."""
    return int(1000 * step.get("time", 0))


def _whole_lines(lines: list[bytes]) -> list[bytes]:
    """Without a last one that is still being written."""
    return lines if lines and lines[-1].endswith(b"\n") else lines[:-1]
