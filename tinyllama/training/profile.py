"""With profile=true: a trace of a few steps, and a table of where a step goes."""

import gzip
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.profiler
from torch.profiler import ProfilerActivity, record_function

from tinyllama.checkpoint.files import write_durably
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.data.loader import MicroBatch
from tinyllama.training.breakdown import RANGE, Breakdown, break_down, table
from tinyllama.training.hooks import Hook
from tinyllama.training.metrics import StepReport

log = logging.getLogger(__name__)

SKIPPED = 8
"""Steps that go by first, while caches fill, kernels are compiled and the data is read ahead."""
STEPS = 3
MICRO_BATCHES = 64
"""A trace of more is hard to look at: then there are fewer steps, at least one."""


@dataclass(frozen=True)
class Window:
    """Which steps of this process are recorded."""

    skipped: int
    recorded: int

    @classmethod
    def of(cls, steps_left: int, accumulation: int) -> "Window":
        """The usual one, or what the rest of a stage allows: then the steps before it become fewer first."""
        recorded = min(steps_left, max(1, min(STEPS, MICRO_BATCHES // accumulation)))
        return cls(min(SKIPPED, steps_left - recorded), recorded)


class Marked(Hook):
    """Several hooks in a row, which traces tell apart as a part of the step (breakdown.py)."""

    def __init__(self, name: str, hooks: Sequence[Hook]):
        self._range, self._hooks = RANGE + name, hooks

    def after_step(self, report: StepReport, batch: Sequence[MicroBatch]) -> None:
        with record_function(self._range):
            for hook in self._hooks:
                hook.after_step(report, batch)

    def close(self) -> None:
        with ExitStack() as stack:
            for hook in self._hooks:
                stack.callback(hook.close)


class Profile(Hook):
    """Records whole steps of this rank; must be the last hook, for a step ends with it.

    Args:
        label: what people call the run.
    """

    def __init__(self, folder: RunFolder, label: str, window: Window):
        self._folder, self._label, self._window = folder, label, window
        self._step = 0
        self._before: list[float] = []
        """Seconds of the steps that were not recorded."""
        self._profiler, self._recording = recorder(window, self._keep), True
        self._profiler.start()
        self._since = time.perf_counter()

    def after_step(self, report: StepReport, batch: Sequence[MicroBatch]) -> None:
        if not self._recording:
            return
        self._step = report.progress.step
        self._before.append(time.perf_counter() - self._since)
        self._profiler.step()  # calls `_keep` when enough has been recorded
        if len(self._before) == self._window.skipped + self._window.recorded:
            self._stop()
        self._since = time.perf_counter()

    def close(self) -> None:
        if self._recording:
            self._profiler.on_trace_ready = None
            self._stop()
            log.warning("%s: profile=true recorded nothing: training ended before", self._label)

    def _stop(self) -> None:
        self._profiler.stop()
        self._recording = False

    def _keep(self, profiler: Any) -> None:
        try:
            self._write(profiler)
        except OSError as error:  # of no concern to the weights
            log.warning("%s: the profile could not be written: %s", self._label, error)

    def _write(self, profiler: Any) -> None:
        first = self._step - self._window.recorded + 1
        trace = self._folder.profile_trace(first)
        aside = trace.with_name(f".{trace.name}")
        trace.parent.mkdir(exist_ok=True)
        breakdown = write_trace(profiler, aside)
        aside.replace(trace)
        usual = usual_seconds(self._before[: self._window.skipped])
        document = {
            "first_step": first,
            "last_step": self._step,
            "seconds_before": usual,
            "recorded_over_before": breakdown.seconds / usual if usual else None,
            **asdict(breakdown),
        }
        text = f"{self._heading(first, breakdown, usual)}\n\n{table(breakdown)}\n"
        write_durably(self._folder.profile_document, json.dumps(document, indent=2) + "\n")
        write_durably(self._folder.profile_table, text)
        log.info("%s: %s\n%s", self._label, text, trace)

    def _heading(self, first: int, breakdown: Breakdown, usual: float | None) -> str:
        window = self._window
        which = f"step {first}" if window.recorded == 1 else f"steps {first} to {self._step}"
        text = f"{which} on rank 0, {breakdown.seconds * 1e3:.2f} ms each"
        if usual:
            text += f"; {breakdown.seconds / usual:.2f} of the {usual * 1e3:.2f} ms of those before, unrecorded"
        if window.skipped < SKIPPED:
            steps = "1 step" if window.skipped == 1 else f"{window.skipped} steps"
            text += f"; the stage is short: only {steps} before them, so that this holds what first steps cost once"
        if torch.cuda.is_available() and breakdown.device_seconds is None:
            text += "; what the GPU did could not be recorded"
        return text


def usual_seconds(before: Sequence[float]) -> float | None:
    """Of the steps before, but for the first half of them and the last, on which the recorder warmed up."""
    steady = before[len(before) // 2 : -1]
    return median(steady) if steady else None


def recorder(window: Window, keep: Callable[[Any], None]) -> torch.profiler.profile:
    """Calls `keep` with itself when its `step` has been called often enough.

    It warms up on the step before the first one that it records, where there is one.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it says on standard error that it begins and ends
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    warmup = min(1, window.skipped)
    return torch.profiler.profile(
        activities=activities,
        schedule=torch.profiler.schedule(wait=window.skipped - warmup, warmup=warmup, active=window.recorded, repeat=1),
        on_trace_ready=keep,
        acc_events=True,  # of the one cycle that there is; else it warns of those to come
    )


def write_trace(profiler: torch.profiler.profile, path: Path) -> Breakdown:
    """Write what was recorded to PATH.json.gz, and tell what it says."""
    profiler.export_chrome_trace(str(path))
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return break_down(json.load(file)["traceEvents"])
