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
    """A raw file as it was when it was read; size and time only spare hashing it again."""

    path: str
    bytes: int
    modified_ns: int
    sha256: str


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
class Manifest:
    """A prepared corpus. `characters` and `tokens` count kept documents, `skipped` rows by reason."""

    corpus: str
    fingerprint: str
    inputs: str
    """Digest of all that preparation reads: raw files, filters, tokenizer, lengths."""
    tokenizer_digest: str
    seq_len: int
    documents: int
    skipped: Mapping[str, int]
    characters: int
    tokens: int
    left_over_tokens: int
    """Of `tokens`, those in no sample: fewer than one sample of each split."""
    bytes: int
    train: SplitManifest
    validation: SplitManifest
    sources: tuple[Source, ...]

    def summary(self, seconds: float) -> dict[str, Any]:
        """The `prepare` document of format=json."""
        splits = {TRAIN: self.train, VALIDATION: self.validation}
        return {
            "corpus": self.corpus,
            "documents": self.documents,
            "skipped": dict(self.skipped),
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
    """Where a prepared corpus lies: train/, validation/ and manifest.json are below it."""
    return Path(data) / "shards" / f"{tokenizer.name}-{seq_len}" / corpus


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
    try:
        return Manifest(
            **fields
            | {name: _split(fields[name]) for name in (TRAIN, VALIDATION)}
            | {"sources": tuple(Source(**source) for source in fields["sources"])}
        )
    except (KeyError, TypeError) as error:
        raise DamageError(
            f"{path} is of another version or damaged ({error}); delete {folder} and prepare the corpus again"
        ) from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1) + "\n", encoding="utf-8")


def fingerprint(
    splits: Mapping[str, Iterable[Shard]], tokenizer_digest: str, tokenizer: TokenizerConfig, seq_len: int
) -> str:
    """Digest of a corpus as training sees it: every shard in order and how its tokens came about.

    Neither paths nor times enter, so the same text prepared anywhere has the same fingerprint.
    """
    return digest(
        {
            "splits": {name: [(shard.sha256, shard.samples) for shard in shards] for name, shards in splits.items()},
            "tokenizer": tokenizer_digest,
            "add_eos": tokenizer.add_eos,
            "add_bos": tokenizer.add_bos,
            "seq_len": seq_len,
        }
    )


def _split(fields: Mapping[str, Any]) -> SplitManifest:
    return SplitManifest(**{**fields, "shard_samples": tuple(fields["shard_samples"])})
