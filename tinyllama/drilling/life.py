"""One life of a run: a real `train` in processes of its own, watched by what it writes, and killed where it is due."""

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tinyllama.checkpoint.layout import RunFolder
from tinyllama.drilling.fork_server import Forked, ForkServer, Program, end_session
from tinyllama.drilling.points import STEPS_TO_SPARE, During, Kill, Placement
from tinyllama.errors import Stopped
from tinyllama.units import format_seconds

TRAIN: Program = "tinyllama.train"
IMPORTS = ("tinyllama.train", "tinyllama.training.run")
"""Modules that every attempt needs; they take seconds."""

_LOOK_SECONDS = 0.002
_LOG_LINES = 12


@dataclass(frozen=True)
class Pace:
    """How fast a life goes on this machine, in seconds."""

    start: float
    """Until the first step is done."""
    step: float
    whole: float


@dataclass(frozen=True)
class Life:
    """How a life went."""

    placement: Placement
    signal: signal.Signals | None
    """What it was sent; None if it was left alone, or ended before."""
    during: During | None
    """Where the signal met it."""
    resumed_from_step: int | None
    """The step before its first one; None if it took none."""
    at_step: int | None
    """The last step that it wrote down."""
    code: int
    """Exit code; below 0 the signal that ended it."""
    hung: bool
    """It did not end in time."""
    pace: Pace
    log: Path

    @property
    def fault(self) -> str | None:
        """What is wrong with how it ended, if anything."""
        if not self.hung and self.code in self._good_codes():
            return None
        how = f"hung for {format_seconds(self.pace.whole)}" if self.hung else f"ended with exit code {self.code}"
        asked = f"after {self.signal.name} during {self.during}" if self.signal else "though no signal was sent"
        return f"{how} {asked}; {self.log} ends with:\n{log_end(self.log)}"

    def _good_codes(self) -> set[int]:
        if self.signal is None:
            return {0}
        if self.signal is signal.SIGKILL:
            return {0, -signal.SIGKILL}
        # On its last step it comes to its end; before Python runs nobody hears.
        deaf = {-self.signal, 128 + self.signal} if self.during == "start-up" else set()
        return {0, Stopped.exit_code} | deaf


def live(
    server: ForkServer, overrides: Sequence[str], folder: RunFolder, placement: Placement, log: Path,
    kill: Kill | None = None, pace: Pace | None = None, interval_steps: int = 1, last_step: int = sys.maxsize,
    limit_seconds: float = math.inf,
) -> Life:  # fmt: skip
    """Train what the overrides say, which is the run of `folder`, until it ends or is killed.

    Args:
        server: forks the process that trains; its imports are no part of the pace.
        pace: the unbroken run's; needed to kill.
        interval_steps: from one checkpoint to the next.
        last_step: the run's.
        limit_seconds: after which it counts as hanging, and is ended by SIGKILL.
    """
    server.wait_until_ready()
    watch, during = _Watch(folder, time.time()), None
    deadline = watch.started + limit_seconds
    process = server.start(TRAIN, [*overrides, *placement.overrides], log)
    try:
        if kill is not None:
            assert pace is not None
            missed = min(kill.step + interval_steps + 1, last_step - STEPS_TO_SPARE)
            if _await(kill, process, watch, pace, missed, deadline):
                during = watch.phase()
                _send(process, kill.signal)
        hung = not _wait(process, deadline - time.time())
    finally:
        end_session(process.pid)
    code = process.wait()
    steps, ended = watch.steps(), time.time()
    return Life(
        placement=placement,
        signal=kill.signal if kill is not None and during is not None else None,
        during=during,
        resumed_from_step=steps[0].number - 1 if steps else None,
        at_step=steps[-1].number if steps else None,
        code=code,
        hung=hung,
        pace=_pace(watch.started, steps, ended),
        log=log,
    )


def log_end(log: Path) -> str:
    """The last lines that a life printed."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:])


@dataclass(frozen=True)
class _Step:
    number: int
    time: float


class _Watch:
    """What a life that began at `started` has written so far."""

    def __init__(self, folder: RunFolder, started: float):
        self._folder, self.started = folder, started

    def steps(self) -> list[_Step]:
        """Those of this life: lines of earlier ones are older."""
        try:
            lines = self._folder.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        except FileNotFoundError:
            return []
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        return [_Step(line["step"], line["time"]) for line in found if line["time"] >= self.started]

    def phase(self) -> During:
        if self._checkpointing():
            return "checkpoint"
        return "step" if self.steps() else "start-up"

    def _checkpointing(self) -> bool:
        """Whether a checkpoint is being written or removed; what an earlier life left half done is older."""
        for entry in self._folder.leftovers():
            with suppress(FileNotFoundError):  # it may be done just now
                if entry.stat().st_mtime >= self.started:
                    return True
        return False


def _await(kill: Kill, process: Forked, watch: _Watch, pace: Pace, missed: int, deadline: float) -> bool:
    """Wait for the point of the kill; whether the life came there before it ended, and in time.

    Small checkpoints are quickly written: at the step `missed` none is waited for any longer.
    """
    if kill.during == "start-up":
        return not _wait(process, kill.way * pace.start)
    while process.poll() is None and time.time() < deadline:
        steps = watch.steps()
        reached = steps[-1].number if steps else 0
        if reached >= kill.step and kill.during == "step":
            return not _wait(process, kill.way * pace.step)
        if reached >= kill.step and (watch.phase() == "checkpoint" or reached >= missed):
            return True
        time.sleep(_LOOK_SECONDS)
    return False


def _wait(process: Forked, seconds: float) -> bool:
    """Whether it ended within that time."""
    try:
        process.wait(None if seconds == math.inf else max(0.0, seconds))
    except subprocess.TimeoutExpired:
        return False
    return True


def _send(process: Forked, number: signal.Signals) -> None:
    """SIGKILL takes all its processes at once, as a machine that goes down; the others ask the first of them."""
    if number is signal.SIGKILL:
        end_session(process.pid)
    else:
        process.send_signal(number)


def _pace(started: float, steps: Sequence[_Step], ended: float) -> Pace:
    if not steps:
        return Pace(ended - started, 0.0, ended - started)
    between = (steps[-1].time - steps[0].time) / max(1, len(steps) - 1)
    return Pace(steps[0].time - started, between, ended - started)
