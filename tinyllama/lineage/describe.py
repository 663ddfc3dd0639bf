"""A run's plan and config -> its record."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tinyllama.config.schema import CorpusConfig, RunConfig
from tinyllama.data.inventory import corpus_folders
from tinyllama.data.manifest import MANIFEST, Manifest
from tinyllama.data.versions import version_name
from tinyllama.lineage.record import CorpusRecord, Dataset, RunRecord
from tinyllama.planning.identity import digest, flatten
from tinyllama.planning.plan import RunPlan

SOURCE_SETS = 40
"""Of a corpus, whose tokens are recorded; there may be one for each row."""


class Folder(Protocol):
    """What is needed of checkpoint/layout.py's RunFolder."""

    @property
    def path(self) -> Path: ...
    @property
    def metrics(self) -> Path: ...
    @property
    def done(self) -> Path: ...
    @property
    def lock(self) -> Path: ...
    @property
    def outbox(self) -> Path: ...
    @property
    def evaluations(self) -> Path: ...


def record_of(
    config: RunConfig,
    plan: RunPlan,
    variants: Sequence[str],
    folder: Folder,
    *,
    ranks: int,
    first_step: int = 0,
    git_commit: str | None = None,
    adopted_from: str | None = None,
) -> RunRecord:
    """The record of a run, as training makes it and `verify` compares it."""
    directory = folder.path.absolute()
    return RunRecord(
        family=plan.family,
        stage=plan.stage,
        variants=tuple(variants),
        digest=plan.digest,
        parent_digest=plan.parent.digest if plan.parent else None,
        model_digest=digest(plan.meaning["model"]),
        params=_params(plan.meaning),
        datasets=tuple(
            Dataset(name, plan.corpora[name].fingerprint, str(path), plan.corpora[name].samples)
            for name, path in corpus_folders(config, plan.corpora).items()
        ),
        git_commit=git_commit,
        branch=config.branch,
        adopted_from=adopted_from,
        cluster=config.cluster.name,
        gpu=config.cluster.gpu,
        ranks=ranks,
        zero_stage=config.cluster.zero_stage,
        first_step=first_step,
        every_steps=config.log_every_steps,
        directory=directory,
        journal=folder.metrics.absolute(),
        done=folder.done.absolute(),
        lock=folder.lock.absolute(),
        outbox=folder.outbox.absolute(),
        evaluations=folder.evaluations.absolute(),
    )


def corpus_record_of(
    family: str, corpus: CorpusConfig, manifest: Manifest, folder: Path, pictures: Sequence[Path]
) -> CorpusRecord:
    """The record of a prepared version, which lies in `folder`."""
    place = str(folder.absolute())
    metrics = {
        "documents": manifest.documents,
        "characters": manifest.characters,
        "tokens": manifest.tokens,
        "left_over_tokens": manifest.left_over_tokens,
        **{f"{split}_samples": found.samples for split, found in manifest.splits.items()},
        **{f"skipped/{_metric(reason)}": count for reason, count in manifest.skipped.items()},
        **{f"noted/{_metric(matter)}": count for matter, count in manifest.noted.items()},
        **{f"tokens/{_metric(name)}": tokens for name, tokens in _largest_sets(manifest)},
    }
    params = {
        "files": ", ".join(corpus.files),
        "format": corpus.format.value,
        "text_field": corpus.text_field,
        "source_field": str(corpus.source_field),
        "on_bad_row": corpus.on_bad_row.value,
        "keep": _filter(corpus.keep),
        "drop": _filter(corpus.drop),
        "validation_fraction": corpus.validation_fraction,
        "seq_len": manifest.seq_len,
    }
    return CorpusRecord(
        family=family,
        name=version_name(corpus.name, manifest.fingerprint),
        dataset=Dataset(corpus.name, manifest.fingerprint, place, manifest.train.samples),
        tags={"corpus": corpus.name, "tokenizer_digest": manifest.tokenizer_digest, "directory": place},
        params=params,
        metrics={name: float(value) for name, value in metrics.items()},
        artifacts=(f"{place}/{MANIFEST}", *(str(path.absolute()) for path in pictures)),
    )


def _largest_sets(manifest: Manifest) -> list[tuple[str, int]]:
    """The source sets with the most tokens, as many as a person looks at."""
    tokens = [(name, found["tokens"]) for name, found in manifest.source_sets.items()]
    return sorted(tokens, key=lambda each: (-each[1], each[0]))[:SOURCE_SETS]


def _filter(values: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{name}: {', '.join(found)}" for name, found in values.items()) or "none"


def _metric(name: str) -> str:
    """With nothing that stores refuse in a metric's name."""
    return re.sub(r"[^\w\-. /:]", "_", name)


def _params(meaning: Mapping[str, Any]) -> dict[str, str | int | float]:
    flat = flatten(meaning)
    return {name: value if isinstance(value, (int, float)) else str(value) for name, value in flat.items()}
