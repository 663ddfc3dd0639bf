"""Everything of a run that can be compared with its plan.

Each check tells what it found, or raises DamageError at the first difference.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tinyllama.checkpoint.corpora import record_corpus
from tinyllama.checkpoint.files import read_sealed
from tinyllama.checkpoint.layout import Status
from tinyllama.checkpoint.manifest import MANIFEST, Checkpoint, read_manifest, require_file, require_run
from tinyllama.data.manifest import MANIFEST as CORPUS_MANIFEST
from tinyllama.errors import DamageError
from tinyllama.lineage.describe import record_of
from tinyllama.lineage.tracking import disagreements
from tinyllama.planning.chain import ROOT
from tinyllama.planning.document import plan_document
from tinyllama.planning.identity import flatten
from tinyllama.planning.plan import RunPlan
from tinyllama.planning.progress import Progress
from tinyllama.proof.adoption import adoption_of
from tinyllama.proof.examination import Check, Examination, Tell
from tinyllama.proof.journals import check_metrics, check_samples, read_journal
from tinyllama.proof.order import OrderProof
from tinyllama.proof.record import Record
from tinyllama.units import format_bytes


def examine(records: Sequence[Record], tell: Tell) -> list[Check]:
    """Check a run and its ancestors, the root first."""
    examination, order = Examination(), OrderProof(ROOT, tell)
    for record, child in zip(records, [*records[1:], None], strict=True):
        _examine_run(record, child, order, examination, tell)
    return examination.checks


def _examine_run(record: Record, child: Record | None, order: OrderProof, examination: Examination, tell: Tell) -> None:
    sound: list[Checkpoint] = []
    """Those whose manifests can be believed."""
    looks = {
        "plan": lambda: _plan(record),
        "corpora": lambda: _corpora(record),
        **{
            f"checkpoint {path.name}": lambda path=path: _checkpoint(record, path, sound, tell)
            for path in map(record.folder.checkpoint, record.folder.checkpoint_tokens())
        },
        "order": lambda: order.check(record, sound, child),
        "metrics": lambda: check_metrics(record, sound),
        **({"samples": lambda: check_samples(record)} if record.folder.samples.is_file() else {}),
        "end": lambda: _end(record, sound),
        "tracking": lambda: _tracking(record, sound),
    }
    for what, look in looks.items():
        examination.check(f"{record.name}: {what}", look)


_OF_THE_MOMENT = ("variants", "run_dir", "checkpoint_bytes", "checkpoints_bytes", "memory.", "time.")
"""What plan.json says beside the plan: who asked for the run, where it lay, what was expected of the machines."""


def _plan(record: Record) -> str:
    path = record.folder.plan
    found = flatten(read_sealed(path))
    document = plan_document(record.plan, record.config, [], record.folder.status.value, "")
    for name, value in flatten(document).items():
        # Another version may have told more or less.
        if found.get(name, value) != value and not name.startswith(_OF_THE_MOMENT):
            raise DamageError(f"{path}: {name} is {found[name]}, but the run's settings give {value}")
    return f"plan.json says what the settings give: {record.plan.steps:,} steps, {record.plan.samples:,} samples"


def _corpora(record: Record) -> str:
    gone = []
    for name, recorded in record.corpora.items():
        manifest = Path(recorded.folder) / CORPUS_MANIFEST
        if not manifest.is_file():
            gone.append(name)
            continue
        found = asdict(replace(record_corpus(manifest.parent), folder=recorded.folder))
        for field, value in asdict(recorded).items():
            if found[field] != value:
                raise DamageError(
                    f"{manifest} is not what the run was trained on: {field} is {found[field]}, was {value}"
                )
    here = [name for name in record.corpora if name not in gone]
    told = [f"prepared as they were: {', '.join(here)}"] if here else []
    return "; ".join(told + ([f"gone, so their record is relied on: {', '.join(gone)}"] if gone else []))


def _checkpoint(record: Record, path: Path, sound: list[Checkpoint], tell: Tell) -> str:
    """Check one, and add it to `sound` as soon as its manifest can be believed."""
    checkpoint = read_manifest(path)
    require_run(checkpoint, record.plan.digest)
    _require_possible(record.plan, checkpoint)
    sound.append(checkpoint)
    stray = sorted({entry.name for entry in path.iterdir()} - {*checkpoint.files, MANIFEST})
    if stray:
        raise DamageError(f"{path / stray[0]} is a file that {MANIFEST} does not name")
    for done, name in enumerate(checkpoint.files, 1):
        require_file(checkpoint, name)
        tell(f"checkpoint {record.name} {path.name}", done, len(checkpoint.files))
    size = format_bytes(sum(entry["bytes"] for entry in checkpoint.files.values()))
    return f"step {checkpoint.progress.step}, {len(checkpoint.files)} files of {size}, each as {MANIFEST} says"


def _require_possible(plan: RunPlan, checkpoint: Checkpoint) -> None:
    path, found, step = checkpoint.path, checkpoint.progress, checkpoint.progress.step
    possible = Progress(step, step * plan.batch_samples, plan.start_tokens + step * plan.batch_tokens)
    if found != possible or found.tokens != int(path.name) or not 1 <= step <= plan.steps:
        raise DamageError(
            f"{path / MANIFEST}: the plan, {plan.steps} steps of {plan.batch_samples} samples from "
            f"{plan.start_tokens} tokens on, does not come by {found}"
        )


def _end(record: Record, sound: Sequence[Checkpoint]) -> str:
    plan, folder = record.plan, record.folder
    if folder.status is not Status.done:
        return f"not done: step {max((each.progress.step for each in sound), default=0)} of {plan.steps}"
    final, done = Progress(plan.steps, plan.samples, plan.end_tokens), _read_json(folder.done)
    if {name: done.get(name) for name in asdict(final)} != asdict(final):
        raise DamageError(f"{folder.done} tells of another end than the plan's, {final}")
    if final not in [each.progress for each in sound]:
        raise DamageError(f"{folder.checkpoint(plan.end_tokens)}, the state at the end, is missing or not sound")
    last: dict[str, Any] = {}
    for line in read_journal(record, folder.metrics):
        last = dict(line)
    if done.get("validation") != last.get("validation", {}):
        raise DamageError(f"{folder.done} and the last line of {folder.metrics.name} tell different validation losses")
    return f"done after step {plan.steps}, with its final state"


def _tracking(record: Record, sound: Sequence[Checkpoint]) -> str:
    folder, tracking, adopted = record.folder, record.config.tracking, adoption_of(sound)
    steps = [line.get("step", 0) for line in read_journal(record, folder.metrics)]
    described = record_of(
        record.config,
        record.plan,
        read_sealed(folder.plan).get("variants", ()),
        folder,
        ranks=sound[-1].world_size if sound else 1,
        adopted_from=adopted.path if adopted else None,
    )
    runs, done = folder.path.parent.parent, folder.status is Status.done
    found = disagreements(tracking, runs, described, done, max(steps, default=0))
    if found:
        raise DamageError(f"{tracking.name} has another record of the run: {found[0]}")
    return f"tracking={tracking.name} keeps nothing to compare" if found is None else f"{tracking.name} tells the same"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise DamageError(f"{path} cannot be read ({error})") from error
