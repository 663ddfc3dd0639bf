"""What a prepared corpus tells of its documents, in the order of the stream: how long they are, whence they came."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from tinyllama.data.manifest import Manifest, documents_path
from tinyllama.data.strands import Stretch
from tinyllama.errors import DamageError


@dataclass(frozen=True)
class Excerpt:
    """What of a document lies in a stretch."""

    file: str
    row: int
    source_set: str
    document_tokens: int
    begin: int
    """Where in the document it begins, and before which token it ends."""
    end: int


@dataclass(frozen=True)
class Lengths:
    """How many documents, with how many tokens together, have 1, 2 to 3, 4 to 7, 8 to 15 ... tokens."""

    documents: tuple[int, ...]
    tokens: tuple[int, ...]


def document_lengths(folder: Path, manifest: Manifest) -> Lengths:
    """Of all documents of a version.

    Raises:
        DamageError: they cannot be read.
    """
    documents, tokens = np.zeros(64, np.int64), np.zeros(64, np.int64)
    for split in manifest.splits:
        for part in range(len(manifest.parts)):
            lengths = _read(folder, split, part, ["tokens"]).column("tokens").to_numpy()
            octaves = np.frexp(lengths)[1] - 1
            documents += np.bincount(octaves, minlength=64)
            tokens += np.bincount(octaves, lengths, 64).astype(np.int64)
    used = int(np.flatnonzero(documents)[-1]) + 1 if documents.any() else 0
    return Lengths(tuple(documents[:used].tolist()), tuple(tokens[:used].tolist()))


def document_ends(folder: Path, split: str, part: int) -> NDArray[np.int64]:
    """How many tokens of a part's stream there are up to the end of each document.

    Raises:
        DamageError: they cannot be read.
    """
    tokens = _read(folder, split, part, ["tokens"]).column("tokens").to_numpy()
    return np.cumsum(tokens, dtype=np.int64)


def excerpts(folder: Path, manifest: Manifest, split: str, stretch: Stretch) -> Iterator[Excerpt]:
    """The documents of a stretch, in their order.

    Raises:
        DamageError: what is known of them cannot be read.
    """
    table = _read(folder, split, stretch.part)
    ends = np.cumsum(table.column("tokens").to_numpy(), dtype=np.int64)
    first, last = np.searchsorted(ends, [stretch.begin, stretch.end - 1], side="right")
    files = manifest.sources[sum(part.files for part in manifest.parts[: stretch.part]) :]
    for end, fields in zip(ends[first : last + 1], table.slice(first, last + 1 - first).to_pylist(), strict=True):
        begin = int(end) - fields["tokens"]
        yield Excerpt(
            file=files[fields["file"]].path,
            row=fields["row"],
            source_set=fields["source_set"],
            document_tokens=fields["tokens"],
            begin=max(stretch.begin - begin, 0),
            end=min(stretch.end, int(end)) - begin,
        )


def _read(folder: Path, split: str, part: int, columns: list[str] | None = None) -> pyarrow.Table:
    path = folder / documents_path(split, part)
    try:
        return pyarrow.parquet.read_table(path, columns=columns, partitioning=None)
    except (pyarrow.ArrowException, OSError) as error:
        raise DamageError(f"{path} cannot be read: {error}") from error
