"""Side work of training: what happens around the loop without being in it."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from tinyllama.checkpoint.store import CheckpointStore
from tinyllama.config.schema import CheckpointConfig
from tinyllama.data.loader import MicroBatch
from tinyllama.engine.zero import ZeroEngine
from tinyllama.errors import TinyllamaError
from tinyllama.planning.plan import RunPlan
from tinyllama.training.metrics import StepReport

log = logging.getLogger(__name__)


class Hook(ABC):
    """Called after every step, on every rank, in the order of training/run.py."""

    @abstractmethod
    def after_step(self, report: StepReport, batch: Sequence[MicroBatch]) -> None:
        """The weights are those after the step of `report`."""

    def close(self) -> None:
        """Training has ended, well or not."""


class Watch(Hook):
    """Ends a run whose gradients are not finite for many steps in a row; single ones the engine skips."""

    PATIENCE = 20

    def __init__(self) -> None:
        self._in_a_row = 0

    def after_step(self, report: StepReport, batch: Sequence[MicroBatch]) -> None:
        self._in_a_row = 0 if report.applied else self._in_a_row + 1
        if not report.applied:
            log.warning("step %d was skipped on all ranks: its gradient is not finite", report.progress.step)
        if self._in_a_row == self.PATIENCE:
            raise TinyllamaError(
                f"{self.PATIENCE} steps in a row had gradients that are not finite, up to step {report.progress.step}; "
                f"the last checkpoint is from before: lower optimizer.learning_rate or look at the data of these steps"
            )


class Checkpointing(Hook):
    """Saves every so many tokens, at milestones, when a stop is asked for, and at the end of the stage.

    `order_chain` is collective and tells the chain after the step.
    """

    def __init__(
        self, engine: ZeroEngine, store: CheckpointStore, plan: RunPlan, config: CheckpointConfig,
        order_chain: Callable[[], str],
    ):  # fmt: skip
        self._engine, self._store, self._plan, self._config = engine, store, plan, config
        self._order_chain = order_chain

    def after_step(self, report: StepReport, batch: Sequence[MicroBatch]) -> None:
        progress, before = report.progress, report.before
        milestone = any(before.tokens < tokens <= progress.tokens for tokens in self._config.milestones)
        due = progress.crossed(before, self._config.every_tokens) or progress.step == self._plan.steps
        if due or milestone or report.stopping:
            self._store.write(progress, self._order_chain(), self._engine.save)
