"""What a preparation comes to before anything is read: its recipe, its raw files, and the parts that they are cut into.

All of it follows from the settings and from the names, sizes and times of the raw files.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from math import log2
from pathlib import Path
from typing import Any

from tinyllama.config.schema import CorpusConfig, TokenizerConfig
from tinyllama.data.listing import RawFile, find_files
from tinyllama.data.manifest import Source, corpus_folder
from tinyllama.data.packing import token_dtype
from tinyllama.data.readers import source_sets
from tinyllama.data.tokenizer import Tokenizer
from tinyllama.planning.identity import digest

SMALLEST_PART_BYTES = 1 << 18
MOST_PARTS = 1024
"""So many times the size of a part is the most that a corpus may hold of raw files before larger parts are due."""
STEP = 8
MIN_SHARD_BYTES, MAX_SHARD_BYTES = 1 << 16, 1 << 23
MIN_SHARD_SAMPLES = 16
"""As many neighbouring samples can at least be joined to a longer one."""
# Of a digest in a folder's name.
DIGEST_LENGTH = 16


@dataclass(frozen=True)
class Recipe:
    """All that decides how raw text becomes samples."""

    corpus: CorpusConfig
    tokenizer: TokenizerConfig
    tokenizer_digest: str
    seq_len: int
    shard_samples: int
    """Samples in each shard but a part's last: a power of two."""

    @cached_property
    def digest(self) -> str:
        return digest(self._meaning)

    def inputs(self, parts: Iterable[Iterable[Source]]) -> str:
        """Digest of the recipe and the content of the raw files of each part."""
        return digest({"parts": [[source.sha256 for source in sources] for sources in parts], **self._meaning})

    @property
    def _meaning(self) -> Mapping[str, Any]:
        return {
            "format": self.corpus.format.value,
            "text_field": self.corpus.text_field,
            "source_field": self.corpus.source_field,
            "on_bad_row": self.corpus.on_bad_row.value,
            "keep": {name: list(values) for name, values in self.corpus.keep.items()},
            "drop": {name: list(values) for name, values in self.corpus.drop.items()},
            "validation_fraction": self.corpus.validation_fraction,
            "tokenizer": self.tokenizer_digest,
            "add_eos": self.tokenizer.add_eos,
            "add_bos": self.tokenizer.add_bos,
            "seq_len": self.seq_len,
            "shard_samples": self.shard_samples,
        }


@dataclass(frozen=True)
class Part:
    """Neighbouring raw files, and the folder of what becomes of them."""

    files: tuple[RawFile, ...]
    folder: Path


@dataclass(frozen=True)
class Work:
    """A corpus to be prepared."""

    recipe: Recipe
    files: tuple[RawFile, ...]
    data: Path

    @property
    def folder(self) -> Path:
        """Where the latest version of the prepared corpus will stand."""
        return corpus_folder(self.data, self.recipe.tokenizer, self.recipe.seq_len, self.recipe.corpus.name)

    @property
    def store(self) -> Path:
        """Where the parts of all versions are."""
        return self.folder.with_name(f".{self.folder.name}-parts")

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        return tuple(Part(files, self.store / part_name(self.recipe, files)) for files in cut(self.files))


def lay_out(corpus: CorpusConfig, tokenizer: TokenizerConfig, seq_len: int, data: str | Path) -> Work:
    """List the raw files of a corpus and decide how they are to be prepared.

    Raises:
        ConfigError: no raw files, or an unusable tokenizer.
    """
    files = tuple(find_files(corpus))
    sample_bytes = (seq_len + 1) * token_dtype(tokenizer.vocab_size).itemsize
    recipe = Recipe(
        corpus,
        tokenizer,
        Tokenizer.load(tokenizer).digest,
        seq_len,
        shard_samples(sum(file.bytes for file in files), sample_bytes),
    )
    return Work(recipe, files, Path(data))


def part_bytes(total: int) -> int:
    """About how much of the raw files makes a part, given how much there is in all.

    The same whatever is added, so that most parts of a version serve the next one; but there shall be some of them even
    in a small corpus, and no more than a few thousand in a large one. So it goes up in steps, each of which costs the
    whole corpus anew: one every time that it has grown eightfold, from 256 MiB on.
    """
    size = SMALLEST_PART_BYTES
    while total > size * MOST_PARTS:
        size *= STEP
    return size


def shard_samples(total: int, sample_bytes: int) -> int:
    """Samples of a shard, a power of two: small corpora get small shards, so that there are some to shuffle among.

    It changes with the size of the parts only.
    """
    wanted = min(max(part_bytes(total) // 4, MIN_SHARD_BYTES), MAX_SHARD_BYTES)
    return max(MIN_SHARD_SAMPLES, 1 << round(log2(max(1, wanted / sample_bytes))))


def cut(files: Sequence[RawFile]) -> Iterator[tuple[RawFile, ...]]:
    """Neighbouring files in groups.

    A group ends when it is large enough; or when it is a quarter of that and its last file says so, by its name and
    size: so the groups after a file that was added, changed or removed soon are those that there were before.
    """
    enough = part_bytes(sum(file.bytes for file in files))
    group: list[RawFile] = []
    filled = 0
    for file in files:
        group.append(file)
        filled += file.bytes
        if filled >= enough or (filled >= enough / 4 and _ends_part(file, enough)):
            yield tuple(group)
            group, filled = [], 0
    if group:
        yield tuple(group)


def _ends_part(file: RawFile, enough: int) -> bool:
    """So for one file in as many as make half a part."""
    name = file.path.rpartition("/")[2]  # wherever the corpus lies
    drawn = int.from_bytes(blake2b(f"{name} {file.bytes}".encode(), digest_size=8).digest())
    return drawn < 2**64 * file.bytes / (enough / 2)


def part_name(recipe: Recipe, files: Iterable[RawFile]) -> str:
    """By all that decides what the part comes to, as far as it is known without reading the files."""
    # A glob that is added can change how the sets of others are called.
    sets = source_sets(recipe.corpus) if recipe.corpus.source_field is None else {}
    listed = [[file.path, file.bytes, file.modified_ns, file.tag, sets.get(file.glob, "")] for file in files]
    return digest({"recipe": recipe.digest, "files": listed})[:DIGEST_LENGTH]
