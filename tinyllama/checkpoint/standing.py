"""The runs of a family that stand on disk, whatever the configuration declares today."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllama.checkpoint.layout import RunFolder
from tinyllama.errors import DamageError
from tinyllama.planning.identity import digest


@dataclass(frozen=True)
class StandingRun:
    """A run that has something to lose: it has a checkpoint, or is done."""

    folder: RunFolder
    digest: str
    meaning: Mapping[str, Any]
    variants: tuple[str, ...]
    """Those that it was trained for."""
    tokens: int
    """Trained in this stage and kept by a checkpoint."""

    @property
    def stage(self) -> str:
        return str(self.meaning["stage"]["name"])

    @property
    def name(self) -> str:
        return self.folder.path.name


def standing_runs(runs: str | Path, family: str) -> tuple[StandingRun, ...]:
    """All of a family, by name.

    Raises:
        DamageError: the record of one is missing or is not that of its directory.
    """
    return tuple(_standing(Path(runs) / family))


def read_identity(folder: RunFolder) -> tuple[str, dict[str, Any]]:
    """Digest and meaning of a run, as identity.json tells them.

    Raises:
        DamageError: it cannot be read, does not give its digest, or is that of another directory.
    """
    try:
        identity = json.loads(folder.identity.read_bytes())
        told, meaning, found = str(identity["digest"]), dict(identity["meaning"]), digest(identity["meaning"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamageError(f"{folder.identity} cannot be read ({error}); restore it from a copy") from error
    if found != told or folder.path.name != f"{meaning['stage']['name']}-{found[:12]}":
        raise DamageError(
            f"{folder.identity} is damaged: what it tells has the digest {found[:12]}, while it names {told[:12]} and "
            f"stands in {folder.path.name}; restore the file from a copy, or move the directory away"
        )
    return found, meaning


def recorded_variants(folder: RunFolder) -> tuple[str, ...]:
    """The variants that a run was trained for so far; none before it began.

    Raises:
        DamageError: its plan.json cannot be read.
    """
    return _recorded(folder)[0] if folder.plan.exists() else ()


def _standing(family: Path) -> Iterator[StandingRun]:
    for path in sorted(family.iterdir()) if family.is_dir() else []:
        folder = RunFolder(path)
        if positions := folder.checkpoint_tokens():
            found, meaning = read_identity(folder)
            variants, start_tokens = _recorded(folder)
            yield StandingRun(folder, found, meaning, variants, positions[-1] - start_tokens)


def _recorded(folder: RunFolder) -> tuple[tuple[str, ...], int]:
    """Variants and start of a run, as plan.json tells them."""
    try:
        plan = json.loads(folder.plan.read_bytes())
        return tuple(plan["variants"]), int(plan["start_tokens"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamageError(f"{folder.plan} cannot be read ({error}); restore it from a copy") from error
