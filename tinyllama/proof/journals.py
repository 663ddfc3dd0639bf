"""What a run wrote down step by step, against its plan: metrics.jsonl and samples.jsonl."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinyllama.checkpoint.layout import Status
from tinyllama.checkpoint.manifest import Checkpoint
from tinyllama.errors import DamageError
from tinyllama.planning.plan import RunPlan
from tinyllama.proof.adoption import adoption_of
from tinyllama.proof.record import Record


def check_metrics(record: Record, checkpoints: Sequence[Checkpoint]) -> str:
    """Each step once, in order, at its tokens and learning rate, at least as far as the checkpoints reach."""
    plan, path, adopted = record.plan, record.folder.metrics, adoption_of(checkpoints)
    before = adopted.progress.step if adopted else 0
    step = before
    for line in read_journal(record, path):
        if line.get("step") != step + 1:
            raise DamageError(f"{path}: step {step + 1} is missing; after step {step} comes step {line.get('step')}")
        step += 1
        tokens = _tokens_after(plan, step)
        for name, expected in {"tokens": tokens, "learning_rate": plan.schedule(tokens)}.items():
            if line.get(name) != expected:
                raise DamageError(f"{path}: {name} of step {step} is {line.get(name)}, but the plan has {expected}")
    reached = max((each.progress.step for each in checkpoints), default=0)
    if step < reached:
        raise DamageError(f"{path}: step {step + 1} is missing; the checkpoints reach to step {reached}")
    return f"steps {before + 1} to {step}, each once" if step > before else "no step yet"


def check_samples(record: Record) -> str:
    """Each step's samples are those of the plan. The journal may begin late, where tracing was switched on."""
    plan, path = record.plan, record.folder.samples
    first = last = 0
    for line in read_journal(record, path):
        step = line.get("step")
        if not isinstance(step, int) or not 1 <= step <= plan.steps or last and step != last + 1:
            raise DamageError(f"{path}: step {last + 1} is missing; after step {last} comes step {step}")
        first, last = first or step, step
        if line.get("samples") != _planned_samples(plan, step) or line.get("tokens") != _tokens_after(plan, step):
            raise DamageError(f"{path}: step {step} was not trained on the samples that the plan gives it")
    if record.folder.status is Status.done and record.config.trace and last != plan.steps:
        raise DamageError(f"{path}: step {last + 1} is missing; the run has {plan.steps}")
    return f"steps {first} to {last} are the plan's, sample by sample" if last else "no step yet"


def read_journal(record: Record, path: Path) -> Iterator[Mapping[str, Any]]:
    """The objects of a file; a last line that was cut short counts for nothing while the run is not done.

    Raises:
        DamageError: the file is missing although there are checkpoints, or a line cannot be read.
    """
    if not path.is_file():
        if record.folder.checkpoint_tokens():
            raise DamageError(f"{path} is missing")
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n") and record.folder.status is not Status.done:
                return
            try:
                yield dict(json.loads(line))
            except (ValueError, TypeError) as error:
                raise DamageError(f"{path}: line {number} cannot be read ({error})") from error


def _planned_samples(plan: RunPlan, step: int) -> list[list[Any]]:
    found = plan.order.samples(np.arange((step - 1) * plan.batch_samples, step * plan.batch_samples))
    names = [plan.order.names[index] for index in found.corpus.tolist()]
    return [list(row) for row in zip(names, found.draw.tolist(), found.sample_id.tolist(), strict=True)]


def _tokens_after(plan: RunPlan, step: int) -> int:
    return plan.start_tokens + step * plan.batch_tokens
