"""The store of parts of a corpus: which of them stay, which are to be made anew.

Parts outlive the preparation that made them, since versions share their files and the next one is made of most of them.
A part goes when no version that stands is made of it, nor the work at hand: so whoever deletes a version deletes it for
good, and whoever deletes a shard of one that is damaged has the part made anew that it is of.
"""

import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain, repeat
from pathlib import Path

from tinyllama.data.disk import sync
from tinyllama.data.manifest import Manifest, documents_path
from tinyllama.data.parts import UNFINISHED
from tinyllama.data.recipe import Part, Work
from tinyllama.data.shards import read_shards

JOINED = "joined"
"""An empty file in a part of which a version was made."""


def clear_unfinished(work: Work) -> None:
    """Remove what killed processes left; nobody else may be at work."""
    for folder in work.store.glob(f"{UNFINISHED}*"):
        shutil.rmtree(folder)


def drop_lost(work: Work, versions: Mapping[Path, Manifest]) -> list[Path]:
    """Remove the parts of versions that were deleted, and those of which versions have lost files.

    Returns: the versions that have lost some.
    """
    broken = {folder: set(_lost(folder, manifest)) for folder, manifest in versions.items()}
    lost = set[str]().union(*broken.values())
    standing = _names(versions.values())
    for part in _parts(work):
        if part.name in lost or (part.name not in standing and (part / JOINED).exists()):
            shutil.rmtree(part)
    return [folder for folder, found in broken.items() if found]


def mark_joined(parts: Iterable[Part]) -> None:
    for part in parts:
        if not (part.folder / JOINED).exists():
            (part.folder / JOINED).touch()
            sync(part.folder)


def drop_unneeded(work: Work, versions: Mapping[Path, Manifest]) -> None:
    """Remove parts that no version is made of, nor the work at hand: of preparations that nobody went on with."""
    needed = _names(versions.values()) | {part.folder.name for part in work.parts}
    for part in _parts(work):
        if part.name not in needed:
            shutil.rmtree(part)


def _parts(work: Work) -> list[Path]:
    return [path for path in work.store.glob("*") if not path.name.startswith(UNFINISHED)]


def _names(manifests: Collection[Manifest]) -> set[str]:
    return {part.folder for part in chain.from_iterable(manifest.parts for manifest in manifests)}


def _lost(version: Path, manifest: Manifest) -> Iterator[str]:
    """The parts of which a version lacks a file, or has one cut short; an empty name where it lacks something else."""
    for number, part in enumerate(manifest.parts):
        if not all((version / documents_path(split, number)).exists() for split in manifest.splits):
            yield part.folder
    for split, found in manifest.splits.items():
        try:
            shards = read_shards(version / split)
        except (ValueError, KeyError, TypeError):  # the index is no index
            shards = ()
        if len(shards) != len(found.shard_samples):
            yield ""
        owners = (part.folder for part in manifest.parts for _ in range(part.shards[split]))
        for shard, owner in zip(shards, chain(owners, repeat("")), strict=False):
            if not _holds(version / split / shard.name, shard.bytes):
                yield owner


def _holds(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False
