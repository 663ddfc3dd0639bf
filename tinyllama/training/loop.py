"""The training loop of one stage."""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from tinyllama.data.loader import MicroBatch
from tinyllama.engine.zero import Judge, StepResult, ZeroEngine
from tinyllama.planning.plan import RunPlan
from tinyllama.planning.progress import Progress
from tinyllama.training.hooks import Hook
from tinyllama.training.metrics import Meter
from tinyllama.training.stopping import StopRequest
from tinyllama.training.watch import Watch

Batch = Sequence[MicroBatch]
"""This rank's micro-batches of one optimizer step."""


def train(
    engine: ZeroEngine, batches: Iterable[Batch], plan: RunPlan, progress: Progress,
    meter: Meter, watch: Watch, hooks: Sequence[Hook], stop: StopRequest,
) -> Progress:  # fmt: skip
    """Step through the batches until they end or a stop is asked for; returns how far it came."""
    for batch in meter.timed(batches):
        before, progress = progress, progress.after(plan.batch_samples, plan.seq_len)
        learning_rate = plan.schedule(progress.tokens)
        step = engine.step if watch.trains(progress.step) else pass_over
        judge = partial(watch.judge, progress.step, partial(meter.gather, batch, stop))
        result = step([micro.tokens for micro in batch], learning_rate, judge)
        report = meter.report(before, progress, learning_rate, result, watch.objection)
        for hook in hooks:
            hook.after_step(report, batch)
        if report.stopping:
            break
    return progress


def pass_over(micro_batches: Sequence[Tensor], learning_rate: float, judge: Judge) -> StepResult:
    """Stands in for the engine's step where samples count as consumed and nothing is computed."""
    losses = torch.full((sum(map(len, micro_batches)),), math.nan)
    judge(losses, math.nan)
    return StepResult(losses, math.nan, applied=False)


def grouped(micro_batches: Iterable[MicroBatch], accumulation: int) -> Iterator[list[MicroBatch]]:
    """Micro-batches by optimizer step; a last group that is not full cannot occur, since plans hold whole batches."""
    batch: list[MicroBatch] = []
    for micro in micro_batches:
        batch.append(micro)
        if len(batch) == accumulation:
            yield batch
            batch = []
    assert not batch, f"{len(batch)} micro-batches left over"
