"""Whether the shards of a stream hold what the index, the vocabulary and the list of documents say. All in arrays."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinyllama.data.manifest import Shard
from tinyllama.data.packing import token_dtype
from tinyllama.data.strands import Strand
from tinyllama.data.tokenizer import Tokenizer

SHOWN = 10
"""Faults of a kind that are described; the others are counted."""

SHARDS, VOCABULARY, DOCUMENTS, SPECIAL, OVERLAP = (
    "shards", "vocabulary", "document borders", "special tokens", "overlap of samples",
)  # fmt: skip
"""What is looked at."""


class Kind(IntEnum):
    """What a token is."""

    text = 0
    bos = 1
    eos = 2
    unknown = 3
    """A character without a piece, in a vocabulary that cannot spell it in bytes."""
    special = 4
    """What stands for no text, and is neither BOS nor EOS."""
    outside = 5
    """Of the vocabulary."""


class Faults:
    """What is wrong, by what was looked at; the first SHOWN of a kind in words."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.words: dict[str, list[str]] = {}

    def add(self, kind: str, words: Iterator[str] | Sequence[str], count: int = 1) -> None:
        self.counts[kind] += count
        known = self.words.setdefault(kind, [])
        known.extend(islice(words, SHOWN - len(known)))

    def include(self, other: "Faults") -> None:
        for kind, count in other.counts.items():
            self.add(kind, other.words[kind], count)


@dataclass
class Found:
    """What the shards of a strand hold."""

    faults: Faults = field(default_factory=Faults)
    kinds: Counter[Kind] = field(default_factory=Counter)
    """Tokens of each kind save text."""
    tokens: int = 0
    """Of the stream, each once."""
    bytes: int = 0

    def include(self, other: "Found") -> None:
        self.faults.include(other.faults)
        self.kinds += other.kinds
        self.tokens += other.tokens
        self.bytes += other.bytes


class Vocabulary:
    """The kind of every token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.dtype = token_dtype(tokenizer.vocab_size)
        self._kinds = np.array([*(_kind(tokenizer, each) for each in range(tokenizer.vocab_size)), Kind.outside])
        borders = [-1, *np.flatnonzero(self._kinds)]
        self._first, self._end = max(pairwise(borders), key=lambda pair: pair[1] - pair[0])

    def find(self, tokens: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where tokens are no text, and of which kind they are."""
        # Nearly all ids lie in one run of text, and comparing is many times faster than looking up.
        places = np.flatnonzero((tokens <= self._first) | (tokens >= self._end))
        kinds = self._kinds.take(tokens[places], mode="clip")
        return places[kinds != Kind.text], kinds[kinds != Kind.text]


def _kind(tokenizer: Tokenizer, token: int) -> Kind:
    if token in (tokenizer.bos, tokenizer.eos):
        return Kind.bos if token == tokenizer.bos else Kind.eos
    if tokenizer.is_unknown(token):
        return Kind.special if tokenizer.has_byte_fallback else Kind.unknown
    return Kind.special if tokenizer.is_special(token) else Kind.text


def examine_strand(
    folder: Path,
    shards: Sequence[Shard],
    strand: Strand,
    borders: dict[Kind, NDArray[np.int64]],
    vocabulary: Vocabulary,
    seq_len: int,
) -> Found:
    """Read the shards of a strand, one at a time.

    Args:
        folder: of the split.
        shards: all of the split.
        borders: where in the stream BOS and EOS are to be.
    """
    found = Found()
    sample, before = strand.samples.start, None
    for shard in shards[strand.shards.start : strand.shards.stop]:
        tokens = _read(folder, shard, seq_len, vocabulary.dtype, found)
        if tokens is not None:
            place = _Place(f"{folder.name}/{shard.name}", sample, seq_len)
            _compare_overlap(tokens, before, place, found.faults)
            start = (sample - strand.samples.start) * seq_len
            stream = tokens[:, :seq_len].ravel()
            if sample + shard.samples == strand.samples.stop:
                stream = np.append(stream, tokens[-1, -1])
            _compare_kinds(stream, start, borders, vocabulary, place, found)
        before = None if tokens is None else tokens[-1, -1]
        sample += shard.samples
    return found


@dataclass(frozen=True)
class _Place:
    """Puts places in a shard into words."""

    shard: str
    first_sample: int
    seq_len: int

    def words(self, position: int) -> str:
        """Of a position in the shard's part of the stream."""
        sample, token = divmod(int(position), self.seq_len)
        return f"{self.shard}, sample {self.first_sample + sample}, token {token}"


def _read(folder: Path, shard: Shard, seq_len: int, dtype: np.dtype, found: Found) -> NDArray[np.integer] | None:
    """The samples of a shard [n, seq_len + 1], also of one that is altered; None if it cannot be taken apart."""
    path, name = folder / shard.name, f"{folder.name}/{shard.name}"
    try:
        content = path.read_bytes()
    except OSError as error:
        found.faults.add(SHARDS, [f"{name} cannot be read ({error.strerror})"])
        return None
    found.bytes += len(content)
    if len(content) != shard.bytes:
        found.faults.add(SHARDS, [f"{name} holds {len(content)} bytes, the index says {shard.bytes}"])
        return None
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != shard.sha256:
        found.faults.add(SHARDS, [f"{name} has sha256 {sha256[:12]}..., the index says {shard.sha256[:12]}..."])
    samples = samples_of(content, seq_len, dtype)
    if samples is None or len(samples) != shard.samples:
        found.faults.add(SHARDS, [f"{name} does not hold {shard.samples} samples of {seq_len + 1} tokens"])
        return None
    return samples


def samples_of(content: bytes, seq_len: int, dtype: np.dtype) -> NDArray[np.integer] | None:
    """The samples [n, seq_len + 1] of an MDS shard; None if it is not made of such.

    MDS: the number of samples, the offsets of their beginnings and of the end (all uint32), a description, the samples;
    each ends with its tokens, after a header that tells their number.
    """
    count = int(np.frombuffer(content, "<u4", 1)[0]) if len(content) >= 4 else 0
    if not 0 < count <= len(content) // 4 - 2:
        return None
    offsets = np.frombuffer(content, "<u4", count + 1, 4).astype(np.int64)
    stride, width = int(offsets[1] - offsets[0]), (seq_len + 1) * dtype.itemsize
    if stride < width or (np.diff(offsets) != stride).any() or offsets[-1] != len(content):
        return None
    first = int(offsets[0]) + stride - width
    view: NDArray[np.integer] = np.ndarray((count, seq_len + 1), dtype, content, first, (stride, dtype.itemsize))
    return np.ascontiguousarray(view)


def _compare_overlap(samples: NDArray[np.integer], before: np.integer | None, place: _Place, faults: Faults) -> None:
    """Each sample goes on with the token that the one before it, in this shard or the last, ended with."""
    wrong = np.flatnonzero(samples[:-1, -1] != samples[1:, 0]) + 1
    if before is not None and samples[0, 0] != before:
        wrong = np.append(0, wrong)
    words = (f"{place.words(row * place.seq_len)} is not the last of the sample before" for row in wrong)
    faults.add(OVERLAP, words, len(wrong))


def _compare_kinds(
    stream: NDArray[np.integer],
    start: int,
    borders: dict[Kind, NDArray[np.int64]],
    vocabulary: Vocabulary,
    place: _Place,
    found: Found,
) -> None:
    """What is no text stands where it should, and nowhere else."""
    places, kinds = vocabulary.find(stream)
    found.tokens += len(stream)
    found.kinds.update({kind: int((kinds == kind).sum()) for kind in Kind if kind != Kind.text})
    for kind, expected in borders.items():
        first, last = np.searchsorted(expected, [start, start + len(stream)])
        here, there = places[kinds == kind], expected[first:last] - start
        if not np.array_equal(here, there):
            name = kind.name.upper()
            surplus, missing = np.setdiff1d(here, there), np.setdiff1d(there, here)
            more = (f"{place.words(position)} is {name} in the midst of a document" for position in surplus)
            fewer = (f"{place.words(position)} is to be {name} and is not" for position in missing)
            found.faults.add(DOCUMENTS, more, len(surplus))
            found.faults.add(DOCUMENTS, fewer, len(missing))
    for kind, check in ((Kind.special, SPECIAL), (Kind.outside, VOCABULARY)):
        wrong = places[kinds == kind]
        found.faults.add(check, (f"{place.words(each)} is {stream[each]}" for each in wrong), len(wrong))
