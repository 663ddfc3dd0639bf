"""What a prepared corpus is: the names of its files, its counts, its fingerprint.

Light on purpose: planning commands read manifests without importing numpy, streaming or a tokenizer.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinyllama.config.schema import TokenizerConfig
from tinyllama.errors import DamageError
from tinyllama.planning.identity import digest

MANIFEST = "manifest.json"
TRAIN = "train"
VALIDATION = "validation"


@dataclass(frozen=True)
class Source:
    """A raw file as it was when it was read; size, time and tag only spare hashing it again."""

    path: str
    bytes: int
    modified_ns: int
    sha256: str
    tag: str = ""
    """What an object store tells of the content, such as an ETag."""


@dataclass(frozen=True)
class Shard:
    """One MDS file of a split."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SplitManifest:
    """One side of the held-out split; `tokens` are those that training can predict: samples x seq_len."""

    documents: int
    samples: int
    tokens: int
    shard_samples: tuple[int, ...]


@dataclass(frozen=True)
class PartManifest:
    """A stretch of the corpus that was made by itself; the parts follow each other in both splits.

    A split holds the shards of part 0, of part 1 and so on, each cut from the part's own stream of tokens. The last
    shards of a split are made of what the parts left over, in their order, as one stream.
    """

    folder: str
    """Its name in the store of parts."""
    files: int
    """How many of the sources, which follow in the order of the parts, it was made of."""
    shards: Mapping[str, int]
    """By split."""
    left_over: Mapping[str, int]
    """The last tokens of its stream, which filled no sample of its own, by split."""


@dataclass(frozen=True)
class Manifest:
    """A version of a prepared corpus. `characters` and `tokens` count kept documents, `skipped` rows by reason."""

    corpus: str
    fingerprint: str
    inputs: str
    """Digest of all that preparation reads: raw files and their parts, filters, tokenizer, lengths."""
    tokenizer_digest: str
    add_eos: bool
    add_bos: bool
    seq_len: int
    documents: int
    skipped: Mapping[str, int]
    noted: Mapping[str, int]
    """Documents that were kept although they are unusual, by what is unusual."""
    bad_rows: tuple[str, ...]
    """The first of those that were skipped as unreadable, each with its file, row and reason."""
    source_sets: Mapping[str, Mapping[str, int]]
    """Documents and tokens by the set that they come from."""
    characters: int
    tokens: int
    left_over_tokens: int
    """Of `tokens`, those in no sample: fewer than one sample of each split."""
    bytes: int
    train: SplitManifest
    validation: SplitManifest
    parts: tuple[PartManifest, ...]
    sources: tuple[Source, ...]

    @property
    def splits(self) -> dict[str, SplitManifest]:
        return {TRAIN: self.train, VALIDATION: self.validation}

    def summary(self, seconds: float) -> dict[str, Any]:
        """The `prepare` document of format=json."""
        splits = self.splits
        return {
            "corpus": self.corpus,
            "documents": self.documents,
            "skipped": dict(self.skipped),
            "noted": dict(self.noted),
            "bad_rows": list(self.bad_rows),
            "source_sets": {name: dict(found) for name, found in self.source_sets.items()},
            "characters": self.characters,
            "tokens": self.tokens,
            "samples": sum(split.samples for split in splits.values()),
            "shards": sum(len(split.shard_samples) for split in splits.values()),
            "bytes": self.bytes,
            "fingerprint": self.fingerprint,
            "seconds": round(seconds, 3),
            "left_over_tokens": self.left_over_tokens,
            "splits": {
                name: {"documents": split.documents, "samples": split.samples, "shards": len(split.shard_samples)}
                for name, split in splits.items()
            },
        }


def corpus_folder(data: str | Path, tokenizer: TokenizerConfig, seq_len: int, corpus: str) -> Path:
    """Where the latest version of a prepared corpus lies: train/, validation/ and manifest.json are below it."""
    return Path(data) / "shards" / f"{tokenizer.name}-{seq_len}" / corpus


def documents_path(split: str, part: int) -> str:
    """Below a version: the table of the documents of a part and split, in the order of its stream.

    Columns: `tokens` (with BOS and EOS), `file` (index in the part's sources), `row`, `source_set`.
    """
    return f"documents/{split}-{part:04d}.parquet"


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a prepared corpus, None where there is none.

    Raises:
        DamageError: the file is there and cannot be understood.
    """
    path = folder / MANIFEST
    try:
        fields = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DamageError(f"{path} is damaged ({error}); delete {folder} and prepare the corpus again") from error
    if isinstance(fields, dict) and "sources" in fields and "parts" not in fields:
        raise DamageError(
            f"{path} was written by an earlier release, whose corpora this one cannot use; prepare the corpus again, "
            "from its raw files, or go on with that release"
        )
    try:
        return Manifest(
            **fields
            | {name: _split(fields[name]) for name in (TRAIN, VALIDATION)}
            | {"bad_rows": tuple(fields["bad_rows"])}
            | {"parts": tuple(PartManifest(**part) for part in fields["parts"])}
            | {"sources": tuple(Source(**source) for source in fields["sources"])}
        )
    except (KeyError, TypeError) as error:
        raise DamageError(
            f"{path} is of another release or damaged ({error}); delete {folder} and prepare the corpus again"
        ) from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1) + "\n", encoding="utf-8")


def fingerprint(
    splits: Mapping[str, Iterable[Shard]], *, tokenizer_digest: str, add_eos: bool, add_bos: bool, seq_len: int
) -> str:
    """Digest of a corpus as training sees it: every shard in order and how its tokens came about.

    Neither paths nor times enter, so the same text prepared anywhere has the same fingerprint.
    """
    return digest(
        {
            "splits": {name: [(shard.sha256, shard.samples) for shard in shards] for name, shards in splits.items()},
            "tokenizer": tokenizer_digest,
            "add_eos": add_eos,
            "add_bos": add_bos,
            "seq_len": seq_len,
        }
    )


def _split(fields: Mapping[str, Any]) -> SplitManifest:
    return SplitManifest(**{**fields, "shard_samples": tuple(fields["shard_samples"])})
