"""corpora.json of a run: what its data was, so that its order can be told when the data is gone."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinyllama.checkpoint.files import read_sealed, write_sealed
from tinyllama.data.manifest import Manifest, read_manifest
from tinyllama.errors import DamageError
from tinyllama.planning.corpora import Corpus
from tinyllama.planning.identity import digest


@dataclass(frozen=True)
class CorpusRecord:
    """A prepared corpus as a run found it. Counts are those of the training split."""

    fingerprint: str
    tokenizer_digest: str
    documents: int
    samples: int
    tokens: int
    shard_samples: tuple[int, ...]
    folder: str
    """Where its manifest lay."""
    manifest: str
    """Digest of what the manifest said, times and paths aside."""

    @property
    def seq_len(self) -> int:
        """Tokens of a prepared sample."""
        return self.tokens // self.samples

    def corpus(self, name: str) -> Corpus:
        """As planning knows it."""
        return Corpus(name, self.fingerprint, self.shard_samples)


def write_corpora(path: Path, folders: Mapping[str, Path]) -> None:
    """Write down the prepared corpora that lie in these folders."""
    write_sealed(path, {name: asdict(record_corpus(folder)) for name, folder in folders.items()})


def read_corpora(path: Path) -> dict[str, CorpusRecord]:
    """What a run wrote down of its corpora, by name.

    Raises:
        DamageError: the file is missing, or not as it was written.
    """
    try:
        return {
            name: CorpusRecord(**{**fields, "shard_samples": tuple(fields["shard_samples"])})
            for name, fields in read_sealed(path).items()
        }
    except (KeyError, TypeError) as error:
        raise DamageError(f"{path} was written by another version ({error}); use that one") from error


def record_corpus(folder: Path) -> CorpusRecord:
    """A prepared corpus as its manifest describes it now.

    Raises:
        DamageError: there is no manifest, or it cannot be understood.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise DamageError(f"{folder} has no manifest; prepare the corpus again")
    train = manifest.train
    return CorpusRecord(
        fingerprint=manifest.fingerprint,
        tokenizer_digest=manifest.tokenizer_digest,
        documents=train.documents,
        samples=train.samples,
        tokens=train.tokens,
        shard_samples=train.shard_samples,
        folder=str(folder.absolute()),
        manifest=digest(_lasting(manifest)),
    )


def _lasting(manifest: Manifest) -> dict[str, Any]:
    """A manifest without what changes when files are moved, copied or touched."""
    sources = [{"bytes": source.bytes, "sha256": source.sha256} for source in manifest.sources]
    parts = [asdict(part) | {"folder": ""} for part in manifest.parts]
    return asdict(manifest) | {"sources": sources, "parts": parts, "bad_rows": len(manifest.bad_rows)}
