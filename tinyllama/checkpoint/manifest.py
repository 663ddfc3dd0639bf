"""A checkpoint as its manifest describes it, and whether its files are what the manifest says. Reads without torch."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tinyllama.checkpoint.files import READERS, describe, read_sealed, write_sealed
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.errors import DamageError
from tinyllama.planning.progress import Progress

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A state of a run on disk."""

    path: Path
    digest: str
    """Of the run."""
    progress: Progress
    """Where the run stood."""
    order_chain: str
    """Stands for all samples from the root to here, in order (planning/chain.py)."""
    world_size: int
    versions: Mapping[str, str]
    files: Mapping[str, Mapping[str, Any]]
    """Size and digest of each."""
    adopted: Mapping[str, Any] | None = None
    """Where the run's first checkpoint came from, if it was not trained here: path, digest, progress, order_chain."""
    watch: Mapping[str, Any] | None = None
    """State of the numerical watch; older ones have none."""


def write_manifest(checkpoint: Checkpoint) -> None:
    """Into the checkpoint's folder, last of all files: what lacks it is not a checkpoint."""
    fields = asdict(checkpoint)
    path = fields.pop("path")
    for name in ("adopted", "watch"):
        if fields[name] is None:
            del fields[name]
    write_sealed(path / MANIFEST, fields)


def read_manifest(path: Path) -> Checkpoint:
    """The checkpoint in a folder; of its files only the manifest is read.

    Raises:
        DamageError: the manifest is missing, or not as it was written.
    """
    try:
        fields = read_sealed(path / MANIFEST)
    except DamageError as error:
        raise DamageError(f"{error}; the checkpoint cannot be used") from error
    try:
        return Checkpoint(path=path, **{**fields, "progress": Progress(**fields["progress"])})
    except (KeyError, TypeError) as error:
        raise DamageError(f"{path / MANIFEST} was written by another version ({error}); use that one") from error


def read_checkpoint(folder: RunFolder, tokens: int, digest: str) -> Checkpoint:
    """The checkpoint at a position, every file verified against the manifest.

    Raises:
        DamageError: something is missing, altered, or belongs to another run.
    """
    checkpoint = read_manifest(folder.checkpoint(tokens))
    require_run(checkpoint, digest)
    require_files(checkpoint)
    return checkpoint


def require_run(checkpoint: Checkpoint, digest: str) -> None:
    """Raises DamageError if it is a checkpoint of another run."""
    if checkpoint.digest != digest:
        raise DamageError(
            f"{checkpoint.path} belongs to another run: its digest is {checkpoint.digest[:12]}, not {digest[:12]}"
        )


def require_files(checkpoint: Checkpoint) -> None:
    """Raises DamageError if any file is not what the manifest vouches for. Several are read at a time."""
    with ThreadPoolExecutor(max_workers=READERS) as readers:
        for _ in readers.map(partial(require_file, checkpoint), checkpoint.files):
            pass


def require_file(checkpoint: Checkpoint, name: str) -> None:
    """Raises DamageError if a file is not what the manifest vouches for."""
    path = checkpoint.path / name
    if not path.is_file():
        raise DamageError(f"{path} is missing; the checkpoint cannot be used")
    try:
        found = describe(path)
    except OSError as error:
        raise DamageError(f"{path} cannot be read ({error}); the checkpoint cannot be used") from error
    if found != checkpoint.files[name]:
        raise DamageError(f"{path} is damaged: its content is not what {MANIFEST} vouches for")
