"""What planning knows of prepared data: sizes and fingerprints, no file."""

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
class Inventory:
    """The data at hand: `tokenizer_digest` is None until something is prepared with the tokenizer."""

    corpora: Mapping[str, Corpus]
    tokenizer_digest: str | None = None
