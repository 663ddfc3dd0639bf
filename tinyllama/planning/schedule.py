"""Learning rate as a function of the tokens of life, one over all stages. Pure; the trainer asks it at each step."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from tinyllama.config.schema import OptimizerConfig, ScheduleConfig
from tinyllama.errors import unknown


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """Linear warm-up from 0 to `peak`, then what the kind of schedule says."""

    peak: float
    floor: float
    warmup_tokens: int
    horizon_tokens: int

    def __call__(self, tokens: int) -> float:
        """Learning rate of the step that brings the run to `tokens` tokens of life."""
        if tokens < self.warmup_tokens:
            return self.peak * tokens / self.warmup_tokens
        return self._after_warmup(tokens)

    @abstractmethod
    def _after_warmup(self, tokens: int) -> float: ...


class WarmupCosine(Schedule):
    """Half a cosine from the peak at the end of the warm-up to the floor at the horizon; the floor from there on."""

    def _after_warmup(self, tokens: int) -> float:
        if tokens >= self.horizon_tokens:
            return self.floor
        way = (tokens - self.warmup_tokens) / (self.horizon_tokens - self.warmup_tokens)
        return self.floor + (self.peak - self.floor) * (1 + math.cos(math.pi * way)) / 2


class WarmupConstant(Schedule):
    """The peak for ever; floor and horizon mean nothing."""

    def _after_warmup(self, tokens: int) -> float:
        return self.peak


SCHEDULES: dict[str, type[Schedule]] = {"cosine": WarmupCosine, "constant": WarmupConstant}


def build_schedule(schedule: ScheduleConfig, optimizer: OptimizerConfig) -> Schedule:
    """The schedule that the configuration names.

    Raises:
        ConfigError: `schedule.name` is in no table.
    """
    if schedule.name not in SCHEDULES:
        raise unknown("schedule.name", schedule.name, SCHEDULES)
    return SCHEDULES[schedule.name](
        peak=optimizer.learning_rate,
        floor=schedule.min_learning_rate,
        warmup_tokens=schedule.warmup_tokens,
        horizon_tokens=schedule.horizon_tokens,
    )
