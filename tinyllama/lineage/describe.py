"""A run's plan and config -> its record."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tinyllama.config.schema import RunConfig
from tinyllama.data.inventory import corpus_folders
from tinyllama.lineage.record import Dataset, RunRecord
from tinyllama.planning.identity import digest, flatten
from tinyllama.planning.plan import RunPlan


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
    )


def _params(meaning: Mapping[str, Any]) -> dict[str, str | int | float]:
    flat = flatten(meaning)
    return {name: value if isinstance(value, (int, float)) else str(value) for name, value in flat.items()}
