"""Tells whoever watches this rank how far it has come."""

from collections.abc import Sequence

from tinyllama.data.loader import MicroBatch
from tinyllama.engine import heartbeat
from tinyllama.training.hooks import Hook
from tinyllama.training.metrics import StepReport


class Pulse(Hook):
    """A sign of life after every step, before the side work of that step."""

    def __init__(self, last_step: int):
        heartbeat.finished(last_step)

    def after_step(self, report: StepReport, batch: Sequence[MicroBatch]) -> None:
        heartbeat.finished(report.progress.step)
