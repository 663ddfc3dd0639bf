"""What planning knows of what lies on disk: sizes and fingerprints, no file."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Corpus:
    """The training split of a corpus."""

    name: str
    fingerprint: str
    shard_samples: tuple[int, ...]
    """Samples in each shard, in order."""
    prepared: bool = True
    """False: sizes come from the configuration, and the fingerprint stands for no content yet."""

    @property
    def samples(self) -> int:
        return sum(self.shard_samples)


@dataclass(frozen=True)
class HfModel:
    """A Hugging Face Llama whose weights a run starts from."""

    folder: str
    digest: str
    """Of the weights' content."""
    files: tuple[str, ...]
    """Names of the files that hold the weights."""


@dataclass(frozen=True)
class Inventory:
    """What is at hand: `tokenizer_digest` is None until something is prepared with the tokenizer."""

    corpora: Mapping[str, Corpus]
    tokenizer_digest: str | None = None
    origin: HfModel | None = None
    """What the root of the path starts from, where that is not random weights."""
