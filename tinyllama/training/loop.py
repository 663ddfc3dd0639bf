"""The training loop of one stage."""

from collections.abc import Iterable, Iterator, Sequence

from tinyllama.data.loader import MicroBatch
from tinyllama.engine.zero import ZeroEngine
from tinyllama.planning.plan import RunPlan
from tinyllama.planning.progress import Progress
from tinyllama.training.hooks import Hook
from tinyllama.training.metrics import Meter
from tinyllama.training.stopping import StopRequest

Batch = Sequence[MicroBatch]
"""This rank's micro-batches of one optimizer step."""


def train(
    engine: ZeroEngine, batches: Iterable[Batch], plan: RunPlan, progress: Progress,
    meter: Meter, hooks: Sequence[Hook], stop: StopRequest,
) -> Progress:  # fmt: skip
    """Step through the batches until they end or a stop is asked for; returns how far it came."""
    meter.start()
    for batch in batches:
        before, progress = progress, progress.after(plan.batch_samples, plan.seq_len)
        learning_rate = plan.schedule(progress.tokens)
        result = engine.step([micro.tokens for micro in batch], learning_rate)
        report = meter.report(before, progress, learning_rate, batch, result, stop.requested)
        for hook in hooks:
            hook.after_step(report, batch)
        if report.stopping:
            break
        meter.start()
    return progress


def grouped(micro_batches: Iterable[MicroBatch], accumulation: int) -> Iterator[list[MicroBatch]]:
    """Micro-batches by optimizer step; a last group that is not full cannot occur, since plans hold whole batches."""
    batch: list[MicroBatch] = []
    for micro in micro_batches:
        batch.append(micro)
        if len(batch) == accumulation:
            yield batch
            batch = []
    assert not batch, f"{len(batch)} micro-batches left over"
