"""A family from the directories of its runs."""

import json
from pathlib import Path
from typing import Any

from tinyllama.checkpoint.layout import RunFolder, Status
from tinyllama.checkpoint.manifest import MANIFEST
from tinyllama.checkpoint.standing import read_identity
from tinyllama.errors import ConfigError, DamageError
from tinyllama.reporting.pages.family import Family, Run
from tinyllama.reporting.pages.journal import read_journal


def read_runs(runs: Path, family: str) -> Family:
    """All runs of a family that have begun.

    Raises:
        ConfigError: there is none.
        DamageError: the record of one cannot be read.
    """
    folders = _folders(runs / family)
    if not folders:
        others = sorted(path.name for path in runs.glob("*") if path.is_dir() and _folders(path))
        remedy = f"; families there: {', '.join(others)}" if others else ", nor of any other family"
        raise ConfigError(f"family={family} has no runs in paths.runs={runs}{remedy}")
    return Family.of(family, map(_read_run, folders), f"the run directories in {runs / family}")


def _folders(family: Path) -> list[RunFolder]:
    found = sorted(family.iterdir()) if family.is_dir() else []
    return [folder for folder in map(RunFolder, found) if folder.status is not Status.absent]


def _read_run(folder: RunFolder) -> Run:
    digest, meaning = read_identity(folder)
    steps, remarks, unreadable = read_journal(folder.metrics)
    checkpoints = folder.checkpoint_tokens()
    return Run(
        digest=digest,
        meaning=meaning,
        plan=_read_json(folder.plan),
        finished=folder.status is Status.done,
        steps=steps,
        remarks=remarks,
        unreadable_lines=unreadable,
        checkpoints=tuple(checkpoints),
        ranks=_ranks(folder, checkpoints),
        evaluations={tokens: _read_json(folder.evaluation(tokens)) for tokens in folder.evaluation_tokens()},
        place=str(folder.path),
    )


def _ranks(folder: RunFolder, checkpoints: list[int]) -> int | None:
    """That wrote the last checkpoint; a damaged one is no matter of a report's."""
    try:
        return int(_read_json(folder.checkpoint(checkpoints[-1]) / MANIFEST)["world_size"]) if checkpoints else None
    except (DamageError, KeyError, TypeError, ValueError):
        return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise DamageError(f"{path} cannot be read ({error}); restore it from a copy") from error
