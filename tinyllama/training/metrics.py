"""What a step tells: losses of all ranks brought together in one reduction."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from tinyllama.data.loader import MicroBatch
from tinyllama.engine.zero import StepResult
from tinyllama.planning.progress import Progress


@dataclass
class StepReport:
    """One optimizer step as all ranks saw it. Hooks may add what they find out."""

    before: Progress
    progress: Progress
    learning_rate: float
    loss: float
    grad_norm: float
    applied: bool
    """False when the gradient was not finite and no weight was changed."""
    stopping: bool
    """Whether some rank was asked to stop."""
    tokens_per_second: float
    mfu: float | None
    """Model FLOPs over the peak of the GPUs; None where the peak is not known."""
    corpus_losses: dict[str, float]
    corpus_samples: dict[str, int]
    validation: dict[str, float] = field(default_factory=dict)
    """Loss per corpus on held-out samples, on steps on which it is measured."""


class Meter:
    """Turns what this rank saw of a step into a report that is the same on all ranks."""

    def __init__(self, names: Sequence[str], seq_len: int, flops_per_token: float, peak_flops: float | None):
        """`peak_flops`: of all GPUs of the run together, per second."""
        self._names, self._seq_len = names, seq_len
        self._flops_per_token, self._peak_flops = flops_per_token, peak_flops
        self._started = time.perf_counter()

    def start(self) -> None:
        """The next step begins now."""
        self._started = time.perf_counter()

    def report(
        self, before: Progress, progress: Progress, learning_rate: float, batch: Sequence[MicroBatch],
        result: StepResult, stop: bool,
    ) -> StepReport:  # fmt: skip
        losses, samples, stopping = self._reduce(batch, result, stop)
        seconds = time.perf_counter() - self._started
        rate = (progress.samples - before.samples) * self._seq_len / seconds
        return StepReport(
            before=before,
            progress=progress,
            learning_rate=learning_rate,
            loss=sum(losses) / sum(samples),
            grad_norm=result.grad_norm,
            applied=result.applied,
            stopping=stopping,
            tokens_per_second=rate,
            mfu=rate * self._flops_per_token / self._peak_flops if self._peak_flops else None,
            corpus_losses={
                name: loss / count for name, loss, count in zip(self._names, losses, samples, strict=True) if count
            },
            corpus_samples={name: int(count) for name, count in zip(self._names, samples, strict=True)},
        )

    def _reduce(
        self, batch: Sequence[MicroBatch], result: StepResult, stop: bool
    ) -> tuple[list[float], list[float], bool]:
        """Sums of losses and numbers of samples per corpus, and whether any rank stops."""
        corpus = torch.cat([micro.corpus for micro in batch])
        count = len(self._names)
        sums = torch.zeros(2 * count + 1, dtype=torch.float64)
        sums[:count].index_add_(0, corpus, result.losses.double().cpu())
        sums[count:-1] = torch.bincount(corpus, minlength=count)
        sums[-1] = stop
        on_device = sums.to(result.losses.device)
        dist.all_reduce(on_device)
        values = on_device.tolist()
        return values[:count], values[count:-1], values[-1] > 0
