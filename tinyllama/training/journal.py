"""What a run writes down of each step: samples.jsonl, and metrics.jsonl, which trackers follow (lineage/tail.py)."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.distributed as dist

from tinyllama.checkpoint.files import why_not_written
from tinyllama.data.loader import MicroBatch, rank_positions
from tinyllama.errors import DamageError
from tinyllama.planning.order import SampleOrder
from tinyllama.training.hooks import Hook
from tinyllama.training.metrics import StepReport
from tinyllama.world import World


class Journal(Hook):
    """metrics.jsonl: one object per step."""

    def __init__(self, path: Path, last_step: int):
        self._file = open_journal(path, last_step)

    def after_step(self, report: StepReport, batch: Sequence[MicroBatch]) -> None:
        write_line(self._file, metrics_of(report))

    def close(self) -> None:
        self._file.close()


class Trace(Hook):
    """samples.jsonl: which samples each step was trained on, as the ranks' loaders delivered them, in batch order."""

    def __init__(self, path: Path, last_step: int, order: SampleOrder, world: World):
        self._order, self._world = order, world
        self._file = open_journal(path, last_step) if world.is_main else None

    def after_step(self, report: StepReport, batch: Sequence[MicroBatch]) -> None:
        samples = samples_of(report, batch, self._order, self._world)
        if self._file is not None:
            progress = report.progress
            write_line(self._file, {"step": progress.step, "tokens": progress.tokens, "samples": samples})

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def samples_of(
    report: StepReport, batch: Sequence[MicroBatch], order: SampleOrder, world: World
) -> list[tuple[str, int, int]]:
    """What the ranks' loaders delivered for a step, in batch order: corpus, draw and sample of each. Collective."""
    micro_batch = len(batch[0].corpus)
    begins = np.arange(report.before.samples, report.progress.samples, world.size * micro_batch)
    positions = rank_positions(begins, world=world, micro_batch=micro_batch, lanes=order.lanes)
    read = [torch.stack([micro.corpus, micro.draw, micro.sample_id], dim=-1) for micro in batch]
    mine = torch.cat([torch.from_numpy(positions).reshape(-1, 1), torch.cat(read)], dim=1)
    everyone: list[Any] = [None] * world.size
    dist.all_gather_object(everyone, mine)
    rows = torch.cat(everyone)
    rows = rows[rows[:, 0].argsort()]
    return [(order.names[corpus], draw, sample) for _, corpus, draw, sample in rows.tolist()]


def metrics_of(report: StepReport) -> dict[str, Any]:
    """A step as metrics.jsonl has it, as of now."""
    metrics: dict[str, Any] = {
        "step": report.progress.step,
        "tokens": report.progress.tokens,
        "time": round(time.time(), 3),
        "loss": finite(report.loss),
        "learning_rate": report.learning_rate,
        "grad_norm": finite(report.grad_norm),
        "tokens_per_second": round(report.tokens_per_second, 1),
        "data_wait": round(report.data_wait, 4),
        "mfu": report.mfu,
        "corpus_losses": {name: loss for name, loss in report.corpus_losses.items() if math.isfinite(loss)},
        "corpus_samples": report.corpus_samples,
    }
    if report.objection is not None:
        metrics["unusual" if report.applied else "skipped"] = report.objection
    measured = {"validation": report.validation, "evaluation": report.evaluation}
    return metrics | {name: values for name, values in measured.items() if values}


def finite(value: float) -> float | None:
    """JSON has no other numbers."""
    return value if math.isfinite(value) else None


def open_journal(path: Path, last_step: int) -> IO[str]:
    """A file of one JSON object per line, to be gone on with after `last_step`; lines beyond it are cut off."""
    kept = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if not line.endswith("\n") or json.loads(line)["step"] > last_step:
                break
            kept.append(line)
    aside = path.with_name(f".{path.name}.writing")
    aside.write_text("".join(kept), encoding="utf-8")
    aside.replace(path)
    return path.open("a", encoding="utf-8")


def write_line(file: IO[str], value: Mapping[str, Any]) -> None:
    """Append one object; at once, so that a killed run has lost none before its last checkpoint.

    Raises:
        DamageError: the disk does not take it.
    """
    try:
        file.write(json.dumps(value, separators=(",", ":")) + "\n")
        file.flush()
    except OSError as error:
        with suppress(OSError):  # closing tries once more
            file.close()
        path = Path(file.name)
        why = why_not_written(error, path.parent)
        raise DamageError(f"{path.name} could not be written: {why}; then the same command goes on") from error
