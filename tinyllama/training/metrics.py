"""What a step tells: losses of all ranks brought together in one reduction."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import record_function

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
    seconds: float
    """From asking for the batch to the end of the step."""
    data_wait: float
    """Seconds of them in which a rank waited for its samples; of the rank that waited longest."""
    tokens_per_second: float
    mfu: float | None
    """Model FLOPs over the peak of the GPUs; None where the peak is not known."""
    corpus_losses: dict[str, float]
    corpus_samples: dict[str, int]
    validation: dict[str, float] = field(default_factory=dict)
    """Loss per corpus on held-out samples, on steps on which it is measured."""
    evaluation: dict[str, float] = field(default_factory=dict)
    """What the model reaches on each task, on steps on which it is asked."""


class _Sums(NamedTuple):
    """Of a step, over all ranks."""

    losses: list[float]
    """Per corpus."""
    samples: list[float]
    """Per corpus."""
    stopping: bool
    data_wait: float

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
        self._started = self._waited = 0.0

    def timed(self, batches: Iterable[Sequence[MicroBatch]]) -> Iterator[Sequence[MicroBatch]]:
        """The same batches; a step begins when its batch is asked for."""
        iterator = iter(batches)
        while True:
            self._started = time.perf_counter()
            with record_function("tinyllama/data_wait"):
                batch = next(iterator, None)
            if batch is None:
                return
            self._waited = time.perf_counter() - self._started
            yield batch

    def gather(self, batch: Sequence[MicroBatch], stop: StopRequest, losses: Tensor) -> float:
        """Bring together what the ranks know of a step before it changes the weights; returns the loss. Collective.

        The one reduction of a step: of the sums of losses and the numbers of samples per corpus, of whether any rank
        is asked to stop, and for good, and of how long each rank, in a place of its own, waited for its samples.
        """
        corpus = torch.cat([micro.corpus for micro in batch])
        count = len(self._names)
        sums = torch.zeros(2 * count + 2 + dist.get_world_size(), dtype=torch.float64)
        sums[:count].index_add_(0, corpus, losses.double().cpu())
        sums[count : 2 * count] = torch.bincount(corpus, minlength=count)
        sums[2 * count], sums[2 * count + 1] = stop.requested, stop.for_good
        sums[2 * count + 2 + dist.get_rank()] = self._waited
        on_device = sums.to(self._device)
        dist.all_reduce(on_device)
        values = on_device.tolist()
        stopping, for_good, *waits = values[2 * count :]
        stop.agreed_for_good = for_good > 0
        self._sums = _Sums(values[:count], values[count : 2 * count], stopping > 0, max(waits))
        return self._sums.loss

    def report(
        self, before: Progress, progress: Progress, learning_rate: float, result: StepResult, objection: str | None
    ) -> StepReport:
        """Of the step that was gathered last."""
        losses, samples, stopping, data_wait = self._sums
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
            seconds=seconds,
            data_wait=data_wait,
            tokens_per_second=rate,
            mfu=rate * self._flops_per_token / self._peak_flops if self._peak_flops else None,
            corpus_losses={
                name: loss / count for name, loss, count in zip(self._names, losses, samples, strict=True) if count
            },
            corpus_samples={name: int(count) for name, count in zip(self._names, samples, strict=True)},
        )
