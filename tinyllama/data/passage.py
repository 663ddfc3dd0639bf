"""A sample as people can read it: its documents, what they say, where each came from."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinyllama.data.documents import Excerpt, excerpts
from tinyllama.data.manifest import Manifest
from tinyllama.data.packing import token_dtype
from tinyllama.data.shards import read_shards
from tinyllama.data.strands import SplitLayout
from tinyllama.data.tokenizer import Tokenizer
from tinyllama.errors import ConfigError, DamageError


@dataclass(frozen=True)
class Fragment:
    """What a sample holds of a document."""

    excerpt: Excerpt
    tokens: Sequence[int]
    text: str


@dataclass(frozen=True)
class Passage:
    """A sample of a version."""

    corpus: str
    fingerprint: str
    split: str
    sample: int
    shard: str
    place: int
    """In its shard."""
    fragments: tuple[Fragment, ...]
    bytes: int
    """Tokens that spell a character in bytes."""
    unknown: int
    """Tokens for characters that the vocabulary cannot spell."""

    @property
    def tokens(self) -> int:
        return sum(len(fragment.tokens) for fragment in self.fragments)


def read_passage(folder: Path, manifest: Manifest, split: str, sample: int, tokenizer: Tokenizer) -> Passage:
    """Sample `sample` of a split, counted from 0.

    Args:
        folder: the version's own.

    Raises:
        ConfigError: there are not so many.
        DamageError: the shard, or the list of the documents, cannot be read.
    """
    layout = SplitLayout(manifest, split)
    if not 0 <= sample < layout.samples:
        raise ConfigError(
            f"sample={sample} is not in {manifest.corpus}: its split={split} has {layout.samples} samples, "
            f"{f'0 to {layout.samples - 1}' if layout.samples else 'none to show'}"
        )
    number, place = layout.shard_of(sample)
    shard = read_shards(folder / split)[number]
    dtype = token_dtype(tokenizer.vocab_size)
    tokens = _read_tokens(folder / split / shard.name, place, manifest.seq_len + 1, dtype)
    fragments, passed = [], 0
    for stretch in layout.stretches(sample):
        for excerpt in excerpts(folder, manifest, split, stretch):
            ids = tokens[passed : passed + excerpt.end - excerpt.begin].tolist()
            fragments.append(Fragment(excerpt, ids, _decode(ids, excerpt.begin, tokenizer)))
            passed += len(ids)
    if passed != len(tokens):
        raise DamageError(f"the documents of {folder} have {passed} of the {len(tokens)} tokens of sample {sample}")
    return Passage(
        corpus=manifest.corpus,
        fingerprint=manifest.fingerprint,
        split=split,
        sample=sample,
        shard=shard.name,
        place=place,
        fragments=tuple(fragments),
        bytes=sum(map(tokenizer.is_byte, tokens.tolist())),
        unknown=sum(map(tokenizer.is_unknown, tokens.tolist())),
    )


def _read_tokens(path: Path, place: int, length: int, dtype: np.dtype) -> NDArray[np.integer]:
    """The tokens of a sample, with which its bytes in the shard end."""
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            end = int.from_bytes(os.pread(file, 4, 4 * (2 + place)), "little")
            width = length * dtype.itemsize
            content = os.pread(file, width, end - width)
        finally:
            os.close(file)
    except (OSError, OverflowError) as error:
        raise DamageError(f"{path} cannot be read: {error}; action=check tells more") from error
    if len(content) != width:
        raise DamageError(f"{path} ends before its sample {place}; action=check tells more")
    return np.frombuffer(content, dtype)


def _decode(tokens: Sequence[int], begin: int, tokenizer: Tokenizer) -> str:
    """Their text; sentencepiece takes the first space for one that it added, which is so at a document's beginning."""
    text = tokenizer.decode(tokens)
    first = tokenizer.piece(tokens[0]) if begin and tokens else ""
    return f" {text}" if first.startswith("▁") else text
