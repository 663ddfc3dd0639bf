"""Raw files -> what a part holds: packed samples of both splits, a table of the documents in them, and the tally.

Of what sentencepiece makes of each document nothing is left out, and nothing is added but the config's BOS and EOS. A
document that no memory would hold (tokenizer.py) is skipped and counted.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from tinyllama.data.gate import by_kitoken, different
from tinyllama.data.listing import RawFile, fetched
from tinyllama.data.manifest import TRAIN, VALIDATION, Source
from tinyllama.data.packing import Packer, token_dtype
from tinyllama.data.readers import Findings, read_documents
from tinyllama.data.recipe import Recipe
from tinyllama.data.shards import ShardWriter
from tinyllama.data.tokenizer import LONGEST_STRETCH, Tokenizer

SPLITS = (TRAIN, VALIDATION)
BATCH_CHARACTERS = 1 << 20
CHECK_EVERY = 256
"""Of so many documents one is encoded by both engines, where the faster one is at work."""
TOO_LONG = f"over {LONGEST_STRETCH:,} characters without a place to cut"
TABLE_ROWS = 1 << 16
TABLE = pyarrow.schema(
    {
        "tokens": pyarrow.uint64(),
        "file": pyarrow.uint32(),
        "row": pyarrow.uint64(),
        "source_set": pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    }
)


@dataclass
class Tally:
    """What a part came to, and from which files.

    `documents` and `shards` are counted by split, `source_sets` gives the documents and tokens of each; `left_over`
    holds the ids that fill no sample, by split. What the others count: readers.py.
    """

    sources: list[Source] = field(default_factory=list)
    documents: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    bad_rows: list[str] = field(default_factory=list)
    characters: int = 0
    tokens: int = 0
    source_sets: dict[str, dict[str, int]] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    left_over: dict[str, list[int]] = field(default_factory=dict)


class DifferentIds(Exception):
    """The faster engine gave other ids; says of which document."""


def pack(recipe: Recipe, files: Iterable[RawFile], folder: Path, exact: Tokenizer, fast: bool = False) -> Tally:
    """Write the samples of raw files, and the tables of their documents, into a folder.

    Args:
        exact: sentencepiece's.
        fast: let kitoken encode.

    Raises:
        ConfigError: a raw file is damaged, or changed meanwhile.
        DifferentIds: kitoken must not be used.
    """
    tally, findings = Tally(), Findings()
    model = by_kitoken(exact) if fast else exact
    with ExitStack() as stack:
        splits = {split: stack.enter_context(_Split(recipe, folder, split)) for split in SPLITS}
        documents = _read(recipe, files, folder / "fetched", exact, tally.sources, findings)
        for split, batch in _batches(documents, recipe.corpus.validation_fraction):
            encoded = model.encode_documents([document.text for document in batch])
            if fast:
                _compare(exact, model, batch, tally.sources)
            splits[split].add(batch, encoded)
            _count(tally, split, batch, encoded)
    tally.skipped, tally.noted, tally.bad_rows = findings.skipped, findings.noted, findings.bad_rows
    tally.shards = {split: len(splits[split].writer.shards) for split in SPLITS}
    tally.left_over = {split: splits[split].packer.left_over.tolist() for split in SPLITS}
    return tally


def held_out(text: str, fraction: float) -> bool:
    """Whether a document belongs to the validation split: by its text alone, so that copies stay together."""
    return _hash(text) < fraction * 2**64


@dataclass(frozen=True, slots=True)
class _Document:
    text: str
    file: int
    """Which of the part's."""
    row: int
    source_set: str
    hash: int


class _Split:
    """One side of the held-out split, as it is written."""

    def __init__(self, recipe: Recipe, folder: Path, name: str) -> None:
        dtype = token_dtype(recipe.tokenizer.vocab_size)
        self.packer = Packer(recipe.seq_len, dtype)
        self.writer = ShardWriter(folder / name, dtype, recipe.seq_len, recipe.shard_samples)
        self._table = pyarrow.parquet.ParquetWriter(folder / f"documents-{name}.parquet", TABLE, compression="zstd")
        self._rows: list[tuple[int, int, int, str]] = []

    def __enter__(self) -> "_Split":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._write_rows()
        self._table.close()
        self.writer.__exit__(kind, error, trace)

    def add(self, documents: Sequence[_Document], encoded: Sequence[NDArray[np.integer]]) -> None:
        self.writer.write(self.packer.add(np.concatenate(encoded)))
        for document, ids in zip(documents, encoded, strict=True):
            self._rows.append((len(ids), document.file, document.row, document.source_set))
        if len(self._rows) >= TABLE_ROWS:
            self._write_rows()

    def _write_rows(self) -> None:
        columns: list[Any] = list(zip(*self._rows, strict=True)) or [[]] * len(TABLE.names)
        arrays = [pyarrow.array(values, kind.type) for values, kind in zip(columns, TABLE, strict=True)]
        self._table.write_batch(pyarrow.RecordBatch.from_arrays(arrays, schema=TABLE))
        self._rows = []


def _read(
    recipe: Recipe,
    files: Iterable[RawFile],
    scratch: Path,
    exact: Tokenizer,
    sources: list[Source],
    findings: Findings,
) -> Iterator[_Document]:
    for number, file in enumerate(files):
        with fetched(file, scratch) as here:
            sources.append(file.source(here.sha256))
            for document in read_documents(here.path, file, recipe.corpus, findings):
                if exact.can_encode(document.text):
                    text = document.text
                    yield _Document(text, number, document.row, document.source_set, _hash(text))
                else:
                    findings.skipped[TOO_LONG] += 1
    if scratch.exists():
        scratch.rmdir()


def _batches(documents: Iterable[_Document], fraction: float) -> Iterator[tuple[str, list[_Document]]]:
    """Documents of one split at a time, about BATCH_CHARACTERS together; within a split their order is kept."""
    waiting: dict[str, list[_Document]] = {split: [] for split in SPLITS}
    characters = dict.fromkeys(SPLITS, 0)
    for document in documents:
        split = VALIDATION if document.hash < fraction * 2**64 else TRAIN
        waiting[split].append(document)
        characters[split] += len(document.text)
        if characters[split] >= BATCH_CHARACTERS:
            yield split, waiting[split]
            waiting[split], characters[split] = [], 0
    yield from ((split, batch) for split, batch in waiting.items() if batch)


def _compare(exact: Tokenizer, fast: Tokenizer, documents: Iterable[_Document], sources: Sequence[Source]) -> None:
    for document in documents:
        if document.hash % CHECK_EVERY == 0 and different(exact, fast, document.text):
            raise DifferentIds(f"{sources[document.file].path}:{document.row}")


def _count(tally: Tally, split: str, documents: Sequence[_Document], encoded: Sequence[NDArray[np.integer]]) -> None:
    tally.documents[split] += len(documents)
    for document, ids in zip(documents, encoded, strict=True):
        found = tally.source_sets.setdefault(document.source_set, {"documents": 0, "tokens": 0})
        found["documents"] += 1
        found["tokens"] += len(ids)
        tally.characters += len(document.text)
        tally.tokens += len(ids)


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
