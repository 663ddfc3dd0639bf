"""What a person sees of a run: a progress bar on terminals, plain lines elsewhere. All of it on standard error."""

import sys
import time
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tinyllama.data.loader import MicroBatch
from tinyllama.planning.plan import RunPlan
from tinyllama.training.hooks import Hook
from tinyllama.training.metrics import StepReport
from tinyllama.units import format_tokens

LINES = 8
"""Plain lines that a stage prints, when it is not a terminal that listens."""
SECONDS = 60.0
"""And one at least this often."""
WAITING = 0.01
"""The share of a step spent waiting for samples from which on it is told."""


def build_display(plan: RunPlan, label: str, first_step: int, plain: bool, stream: TextIO = sys.stderr) -> Hook:
    """A bar on a terminal of one's own, lines where others print too or nobody looks."""
    return Bar(plan, label, first_step) if stream.isatty() and not plain else Lines(plan, label, stream)


class Bar(Hook):
    """A bar for the stage, redrawn as it goes."""

    def __init__(self, plan: RunPlan, label: str, first_step: int):
        self._progress = Progress(
            TextColumn(label, markup=False), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn(),
            console=Console(stderr=True),
        )  # fmt: skip
        self._task = self._progress.add_task("", total=plan.steps, completed=first_step)
        self._progress.start()

    def after_step(self, report: StepReport, batch: Sequence[MicroBatch]) -> None:
        self._progress.update(self._task, completed=report.progress.step, description=_summary(report))
        if report.validation:
            self._progress.console.print(f"  {_validation(report)}")

    def close(self) -> None:
        self._progress.stop()


class Lines(Hook):
    """A line now and then."""

    def __init__(self, plan: RunPlan, label: str, stream: TextIO):
        self._plan, self._label, self._stream = plan, label, stream
        self._last = time.monotonic()

    def after_step(self, report: StepReport, batch: Sequence[MicroBatch]) -> None:
        every = -(-self._plan.steps // LINES)
        step = report.progress.step
        if step % every == 0 or report.validation or time.monotonic() - self._last > SECONDS:
            self._last = time.monotonic()
            self._print(f"step {step}/{self._plan.steps}  {_summary(report)}")
            if report.validation:
                self._print(_validation(report))

    def _print(self, text: str) -> None:
        print(f"{self._label}: {text}", file=self._stream, flush=True)


def _summary(report: StepReport) -> str:
    mfu = f"  MFU {report.mfu:.1%}" if report.mfu is not None else ""
    waiting = report.data_wait / report.seconds
    wait = f"  {waiting:.0%} of the step waiting for data" if waiting > WAITING else ""
    return (
        f"{format_tokens(report.progress.tokens)} tokens  loss {report.loss:.3f}  "
        f"lr {report.learning_rate:.2e}  {format_tokens(round(report.tokens_per_second))} tokens/s{mfu}{wait}"
    )


def _validation(report: StepReport) -> str:
    return "validation loss  " + "  ".join(f"{name} {loss:.3f}" for name, loss in report.validation.items())
