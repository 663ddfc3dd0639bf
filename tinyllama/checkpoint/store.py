"""Checkpoints of one run: written aside, digested, renamed. Whoever reads never sees half of one."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tinyllama import __version__
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.errors import DamageError
from tinyllama.planning.progress import Progress
from tinyllama.world import World

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were found to be what its manifest says."""

    path: Path
    progress: Progress
    """Where the run stood."""


class CheckpointStore:
    """Writes the checkpoints of one run, and keeps the last of them, the milestones and the end.

    Args:
        keep: how many of the latest stay.
        protected: positions in tokens of life that are never removed.
    """

    def __init__(self, folder: RunFolder, digest: str, world: World, keep: int, protected: Sequence[int] = ()):
        self._folder, self._digest, self._world = folder, digest, world
        self._keep, self._protected = keep, set(protected)

    def write(self, progress: Progress, save: Callable[[Path], None]) -> None:
        """Keep what `save` writes into the folder it is given. Collective: all ranks call it, and `save` on each."""
        final = self._folder.checkpoint(progress.tokens)
        aside = final.with_name(f".{final.name}.writing")
        if self._world.is_main:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        dist.barrier()
        save(aside)
        dist.barrier()
        if self._world.is_main:
            self._seal(aside, progress)
            shutil.rmtree(final, ignore_errors=True)
            aside.rename(final)
            sync(final.parent)
            self._prune()
        dist.barrier()

    def _seal(self, folder: Path, progress: Progress) -> None:
        """The manifest, last of all files: what lacks it is not a checkpoint."""
        files = {entry.name: _describe(entry) for entry in sorted(folder.iterdir())}
        manifest = {
            "digest": self._digest,
            "progress": asdict(progress),
            "world_size": self._world.size,
            "versions": {"tinyllama": __version__},
            "files": files,
        }
        write_durably(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        sync(folder)

    def _prune(self) -> None:
        removable = [tokens for tokens in self._folder.checkpoint_tokens() if tokens not in self._protected]
        for tokens in removable[: -self._keep]:
            path = self._folder.checkpoint(tokens)
            # Renamed first, so that a removal cut short leaves nothing that looks like a checkpoint.
            doomed = path.rename(path.with_name(f".{path.name}.removing"))
            shutil.rmtree(doomed)


def read_checkpoint(folder: RunFolder, tokens: int, digest: str) -> Checkpoint:
    """The checkpoint at a position, every file verified against the manifest.

    Raises:
        DamageError: something is missing, altered, or belongs to another run.
    """
    path = folder.checkpoint(tokens)
    manifest = _read_manifest(path)
    if manifest["digest"] != digest:
        raise DamageError(f"{path} belongs to another run: its digest is {manifest['digest'][:12]}, not {digest[:12]}")
    for name, expected in manifest["files"].items():
        found = _describe(path / name) if (path / name).is_file() else None
        if found is None:
            raise DamageError(f"{path / name} is missing; the checkpoint cannot be used")
        if found != expected:
            raise DamageError(f"{path / name} is damaged: its content is not what {MANIFEST} vouches for")
    return Checkpoint(path, Progress(**manifest["progress"]))


def sync(folder: Path) -> None:
    """Force the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durably(path: Path, text: str) -> None:
    """Write a small file so that it is there whole or not at all, whatever happens."""
    aside = path.with_name(f".{path.name}.writing")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    sync(path.parent)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())
        manifest["digest"], manifest["progress"]["tokens"], manifest["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamageError(f"{path / MANIFEST} cannot be read ({error}); the checkpoint cannot be used") from error
    return manifest


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
