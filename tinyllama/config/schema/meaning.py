"""What a run means: all of it enters the digest, as far as it says what is trained and on what."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Dict, List, Optional

Tokens = Any
"""A count of tokens: 1.5e12, 1_500_000_000_000 or 1.5T at the door, an int once loaded."""


@dataclass(kw_only=True)
class ModelConfig:
    """A Llama-architecture decoder."""

    name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    seq_len: int
    """Context in tokens; samples hold one more, so that each token is predicted once."""
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(kw_only=True)
class TokenizerConfig:
    """A sentencepiece model."""

    name: str
    path: str
    """The .model file."""
    vocab_size: int
    add_eos: bool = True
    """End every document with EOS."""
    add_bos: bool = False
    """Begin every document with BOS."""


class RawFormat(Enum):
    """How a raw file holds documents."""

    auto = "auto"
    jsonl = "jsonl"
    parquet = "parquet"
    arrow = "arrow"
    """A data set that Hugging Face's `datasets` saved: `files` names its folder."""
    text = "text"
    """A file is a document."""


class OnBadRow(Enum):
    """What becomes of a row that cannot be read or lacks a field."""

    stop = "stop"
    skip = "skip"


@dataclass(kw_only=True)
class CorpusConfig:
    """A corpus as it lies on its hub, and what of it is used."""

    name: str
    files: List[str]
    """Globs of raw files on this machine, or addresses such as s3://BUCKET/*.jsonl.zst."""
    format: RawFormat = RawFormat.auto
    """auto: by the name of the file."""
    text_field: str = "text"
    source_field: Optional[str] = None
    """The (dotted) field that says from which source set a row is; null: the glob of its file does."""
    on_bad_row: OnBadRow = OnBadRow.stop
    """skip: such rows are counted, with their reasons."""
    keep: Dict[str, List[str]] = field(default_factory=dict)
    """Only rows whose (dotted) field has one of these values."""
    drop: Dict[str, List[str]] = field(default_factory=dict)
    """No rows whose (dotted) field has one of these values."""
    tokens: Tokens
    """Published size; what plans reckon with until the corpus is prepared."""
    max_epochs: Optional[float] = "${lints.max_epochs}"  # type: ignore[assignment]
    """How often a path from root to leaf may read it; null: without limit."""
    validation_fraction: float = "${validation.fraction}"  # type: ignore[assignment]  # OmegaConf resolves it
    """Share of the documents that is held out, chosen by a hash of the document."""
    version: Optional[str] = None
    """The first digits of the fingerprint of a version that was prepared earlier; null: the latest."""


@dataclass(kw_only=True)
class PackingConfig:
    """How documents become samples."""

    seq_len: int = "${model.seq_len}"  # type: ignore[assignment]
    """Tokens of a prepared sample; what is trained on may be a multiple of it or a divisor."""


@dataclass(kw_only=True)
class MixConfig:
    """Target weights of corpora; only their proportions count."""

    name: str
    weights: Dict[str, float]


class MixChoice(Enum):
    """Which mixture a stage ends with: the family's common one, or the variant's."""

    root = "root"
    variant = "variant"


@dataclass(kw_only=True)
class StageConfig:
    """A stretch of training under one batch size and one target mixture."""

    name: str
    parent: Optional[str] = None
    """The stage whose final state this one continues, or hf:FOLDER, a Hugging Face Llama whose weights it takes;
    null starts from random weights."""
    tokens: Tokens
    batch_tokens: Tokens
    ramp_tokens: Tokens = 0
    """Over how many tokens the mixture goes linearly from the parent's to this stage's."""
    mix: MixChoice = MixChoice.variant
    seq_len: Optional[int] = None
    """Context in tokens during this stage; null: model.seq_len."""
    fork_at_tokens: Optional[Tokens] = None
    """Start from the parent's checkpoint at this many tokens of its life; null: from its end."""

    @property
    def parent_stage(self) -> Optional[str]:
        """The stage that this one continues."""
        return None if self.origin is not None else self.parent

    @property
    def origin(self) -> Optional[str]:
        """The Hugging Face folder that this one starts from."""
        return self.parent[3:] if self.parent is not None and self.parent.startswith("hf:") else None


@dataclass(kw_only=True)
class ScheduleConfig:
    """Learning rate over the whole life, keyed by tokens."""

    name: str
    warmup_tokens: Tokens
    horizon_tokens: Tokens
    """Where the floor is reached."""
    min_learning_rate: float


@dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW."""

    learning_rate: float
    """The peak of the schedule."""
    betas: List[float]
    eps: float
    weight_decay: float
    max_grad_norm: float


@dataclass(kw_only=True)
class OrderConfig:
    """The order of samples."""

    lanes: int = 1
    """Parts into which each corpus is cut so that a node reads only its own."""
    window: int = 32
    """Shards among which samples are shuffled at a time."""
