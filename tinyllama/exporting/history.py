"""What the directories of a run and of its ancestors tell of its life, for the model card."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tinyllama.checkpoint.choice import Chosen
from tinyllama.checkpoint.corpora import CorpusRecord, read_corpora
from tinyllama.checkpoint.files import read_sealed
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.checkpoint.standing import read_identity
from tinyllama.errors import DamageError
from tinyllama.proof.examination import Examination
from tinyllama.proof.record import Record, read_records

_HF = "hf:"


@dataclass(frozen=True)
class Stage:
    """A stretch of the model's life."""

    name: str
    digest: str
    start_tokens: int
    end_tokens: int
    """Of life: where the next stage goes on from it, or where the checkpoint stands."""
    plan: Mapping[str, Any]
    """As plan.json has it."""


@dataclass(frozen=True)
class Share:
    """What the model has read of a corpus from the root."""

    tokens: int
    epochs: float


@dataclass(frozen=True)
class History:
    """The life of a checkpoint. Stages come in their order."""

    stages: tuple[Stage, ...]
    before: str | None
    """What the first of them continues: weights from elsewhere, or a run of which no record is here."""
    shares: Mapping[str, Share] = field(default_factory=dict)
    """By corpus; empty where not all of the life is known."""
    corpora: Mapping[str, CorpusRecord] = field(default_factory=dict)
    """Those of the last stage."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """What `evaluate` has measured of the checkpoint."""


def read_history(chosen: Chosen) -> History:
    """As far as the records tell; what is missing or damaged of ancestors is left out, and said.

    Raises:
        DamageError: a record of the run itself cannot be read.
    """
    stages = [_stage(chosen.folder, chosen.tokens)]
    folder, parent = chosen.folder, read_identity(chosen.folder)[1].get("parent")
    while parent is not None and not parent.startswith(_HF):
        found = sorted(folder.path.parent.glob(f"*-{parent[:12]}"))
        try:
            folder = RunFolder(found[0])
            _, meaning = read_identity(folder)
            stages.insert(0, _stage(folder, stages[0].start_tokens))
        except (IndexError, DamageError):
            break
        parent = meaning.get("parent")
    return History(
        stages=tuple(stages),
        before=parent,
        shares=_shares(chosen),
        corpora=read_corpora(chosen.folder.corpora),
        evaluation=_evaluation(chosen),
    )


def _stage(folder: RunFolder, end_tokens: int) -> Stage:
    plan = read_sealed(folder.plan)
    return Stage(plan["stage"], plan["digest"], plan["start_tokens"], end_tokens, plan)


def _shares(chosen: Chosen) -> dict[str, Share]:
    """Reckoned from the plans of the whole path, which verify proves to be what was read."""
    records = read_records(chosen.folder, Examination())
    if not records or records[-1].folder != chosen.folder:
        return {}
    shares: dict[str, Share] = {}
    ends = [*(record.plan.start_tokens for record in records[1:]), chosen.tokens]
    for record, end in zip(records, ends, strict=True):
        for name, read in _read_in(record, end).items():
            before = shares.get(name, Share(0, 0.0))
            shares[name] = Share(before.tokens + read.tokens, before.epochs + read.epochs)
    return shares


def _read_in(record: Record, end_tokens: int) -> dict[str, Share]:
    """In one stage, until it stood at so many tokens of life."""
    plan = record.plan
    draws = plan.order.draws_before((end_tokens - plan.start_tokens) // plan.seq_len)
    samples = {name: draws[name] - plan.start_draws.get(name, 0) for name in plan.corpora}
    return {
        name: Share(count * plan.seq_len, count / plan.order.epoch_samples(name)) for name, count in samples.items()
    }


def _evaluation(chosen: Chosen) -> dict[str, Any]:
    path = chosen.folder.evaluation(chosen.tokens)
    try:
        return dict(json.loads(path.read_bytes())) if path.is_file() else {}
    except (OSError, ValueError, TypeError) as error:
        raise DamageError(f"{path} cannot be read ({error}); remove it, and evaluate again") from error
