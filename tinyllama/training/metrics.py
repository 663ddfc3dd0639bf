"""What a step tells: losses of all ranks brought together in one reduction."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from tinyllama.data.loader import MicroBatch
from tinyllama.engine.zero import StepResult
from tinyllama.planning.progress import Progress
from tinyllama.training.stopping import StopRequest


@dataclass
class StepReport:
    """One optimizer step as all ranks saw it. Hooks may add what they find out."""

    before: Progress
    progress: Progress
    learning_rate: float
    loss: float
    """Not a finite number where it was not, or where the samples were passed over."""
    grad_norm: float
    applied: bool
    """Whether the weights were changed."""
    objection: str | None
    """Why the step was skipped, or what is unusual about it although it was applied."""
    stopping: bool
    """Whether some rank was asked to stop."""
    tokens_per_second: float
    mfu: float | None
    """Model FLOPs over the peak of the GPUs; None where the peak is not known."""
    corpus_losses: dict[str, float]
    corpus_samples: dict[str, int]
    validation: dict[str, float] = field(default_factory=dict)
    """Loss per corpus on held-out samples, on steps on which it is measured."""


class _Sums(NamedTuple):
    """Of a step, over all ranks."""

    losses: list[float]
    """Per corpus."""
    samples: list[float]
    """Per corpus."""
    stopping: bool

    @property
    def loss(self) -> float:
        return sum(self.losses) / sum(self.samples)


class Meter:
    """Turns what this rank saw of a step into a report that is the same on all ranks."""

    def __init__(
        self, names: Sequence[str], seq_len: int, flops_per_token: float, peak_flops: float | None, device: torch.device
    ):
        """`peak_flops`: of all GPUs of the run together, per second. `device`: where the ranks communicate."""
        self._names, self._seq_len, self._device = names, seq_len, device
        self._flops_per_token, self._peak_flops = flops_per_token, peak_flops
        self._started = time.perf_counter()

    def start(self) -> None:
        """The next step begins now."""
        self._started = time.perf_counter()

    def gather(self, batch: Sequence[MicroBatch], stop: StopRequest, losses: Tensor) -> float:
        """Bring together what the ranks know of a step before it changes the weights; returns the loss. Collective.

        The one reduction of a step: of the sums of losses and the numbers of samples per corpus, and of whether any
        rank is asked to stop.
        """
        corpus = torch.cat([micro.corpus for micro in batch])
        count = len(self._names)
        sums = torch.zeros(2 * count + 1, dtype=torch.float64)
        sums[:count].index_add_(0, corpus, losses.double().cpu())
        sums[count:-1] = torch.bincount(corpus, minlength=count)
        sums[-1] = stop.requested
        on_device = sums.to(self._device)
        dist.all_reduce(on_device)
        values = on_device.tolist()
        self._sums = _Sums(values[:count], values[count:-1], values[-1] > 0)
        return self._sums.loss

    def report(
        self, before: Progress, progress: Progress, learning_rate: float, result: StepResult, objection: str | None
    ) -> StepReport:
        """Of the step that was gathered last."""
        losses, samples, stopping = self._sums
        seconds = time.perf_counter() - self._started
        rate = (progress.samples - before.samples) * self._seq_len / seconds
        return StepReport(
            before=before,
            progress=progress,
            learning_rate=learning_rate,
            loss=self._sums.loss,
            grad_norm=result.grad_norm,
            applied=result.applied,
            objection=objection,
            stopping=stopping,
            tokens_per_second=rate,
            mfu=rate * self._flops_per_token / self._peak_flops if self._peak_flops else None,
            corpus_losses={
                name: loss / count for name, loss, count in zip(self._names, losses, samples, strict=True) if count
            },
            corpus_samples={name: int(count) for name, count in zip(self._names, samples, strict=True)},
        )
