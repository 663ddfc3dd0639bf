"""What can be configured, typed. Plain dataclasses: importing them costs nothing, Hydra checks every file against them.

What a run *means* and where it *runs* live in different classes: nothing in the second half enters a digest.
A field without a default must be given by a file of conf/ or on the command line.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Dict, List, Optional

Tokens = Any
"""A count of tokens: 1.5e12, 1_500_000_000_000 or 1.5T at the door, an int once loaded."""


# ---------------------------------------------------------------- what a run means


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


@dataclass(kw_only=True)
class CorpusConfig:
    """A corpus as it lies on its hub, and what of it is used."""

    name: str
    files: List[str]
    """Globs of raw files: .jsonl, .jsonl.zst, .jsonl.gz or .parquet."""
    text_field: str = "text"
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


# ---------------------------------------------------------------- where it runs


class Precision(Enum):
    """What the forward and backward pass compute in; masters, accumulation and reductions are always fp32."""

    auto = "auto"
    bf16 = "bf16"
    fp32 = "fp32"


@dataclass(kw_only=True)
class ClusterConfig:
    """Machines, and how the work is laid on them."""

    name: str
    nodes: int = 1
    processes: Optional[int] = None
    """Ranks per node; null: one per visible GPU, or one."""
    micro_batch: int
    """Samples per rank and forward pass."""
    zero_stage: int = 1
    shard_within_node: bool = False
    """ZeRO-3 with a second copy of the weights within each node (hpZ): the original's layout."""
    precision: Precision = Precision.auto
    attention: str = "sdpa"
    compile: bool = False
    activation_checkpointing: bool = False
    """Keep of each block only its input, and compute the rest again in the backward pass."""
    workers: int = 0
    """Processes per rank that read samples."""
    threads: Optional[int] = None
    """CPU threads per rank; null: the cores shared among the ranks."""
    timeout_minutes: float = 10.0
    """How long a collective may wait for a rank."""
    gpu: Optional[str] = None
    """What the GPU is called, for people."""
    gpu_memory_gib: Optional[float] = None
    gpu_peak_tflops: Optional[float] = None
    """Dense bf16 peak."""
    assumed_mfu: Optional[float] = None
    """Model FLOPs utilisation that plans reckon with while no finished run tells better."""
    price_per_gpu_hour: Optional[float] = None


@dataclass(kw_only=True)
class PathsConfig:
    runs: str
    data: str


@dataclass(kw_only=True)
class TrackingConfig:
    name: str
    uri: Optional[str] = None


@dataclass(kw_only=True)
class CheckpointConfig:
    every_tokens: Tokens
    keep: int = 2
    """How many of the latest stay, besides milestones and the final one."""
    milestones: List[Any] = field(default_factory=list)
    """Positions in tokens of life whose checkpoints are never removed."""


class WatchMode(Enum):
    """What becomes of a step whose loss or gradient is far outside of what is usual."""

    off = "off"
    warn = "warn"
    skip = "skip"


@dataclass(kw_only=True)
class WatchConfig:
    """The numerical watch. What is not finite is skipped in every mode."""

    mode: WatchMode = WatchMode.skip
    deviations: float = 8.0
    """How many standard deviations from the running mean are unusual."""
    window_steps: int = 128
    """Steps that the running statistics remember; nothing is judged before there were as many."""
    patience_steps: int = 20
    """So many skipped steps in a row go back to the last checkpoint, once, and end the run the second time."""
    rollback: bool = True
    """False: they end the run at once."""
    skip_window: bool = False
    """After going back, pass over the samples between the checkpoint and the last skipped step."""


@dataclass(kw_only=True)
class DrillConfig:
    """The resume drill."""

    steps: int = 16
    """Optimizer steps of the drilled run."""
    kills: int = 5
    seed: int = 0
    """Of the points at which the run is killed."""
    worlds: List[int] = field(default_factory=list)
    """Numbers of ranks to resume with, in turn; empty: those that the machine and the batch allow."""
    keep: bool = False
    """Keep the folder in which it was drilled."""


@dataclass(kw_only=True)
class ValidationConfig:
    fraction: float
    """Share of a corpus' documents that is held out, unless the corpus says otherwise."""
    every_tokens: Tokens
    samples: int
    """At most this many held-out samples per corpus each time."""


@dataclass(kw_only=True)
class LintsConfig:
    ignore: List[str] = field(default_factory=list)
    """Names of lints (planning/lints.py) that are not to speak."""
    max_epochs: Optional[float] = None
    """Of a corpus, unless the corpus says otherwise."""


class Format(Enum):
    text = "text"
    json = "json"


@dataclass(kw_only=True)
class RunConfig:
    """One stage of one variant, whole."""

    family: str
    variant: str
    seed: int

    model: ModelConfig
    tokenizer: TokenizerConfig
    corpora: Dict[str, CorpusConfig]
    root_mix: MixConfig
    data_mix: MixConfig
    stage: StageConfig
    stages: Dict[str, Dict[str, Any]] = field(default_factory=dict)
    """`stages.basic.tokens=...` says of an ancestor what `stage.tokens=...` says of the stage at hand."""
    schedule: ScheduleConfig
    optimizer: OptimizerConfig
    order: OrderConfig = field(default_factory=OrderConfig)

    cluster: ClusterConfig
    paths: PathsConfig
    tracking: TrackingConfig
    checkpoint: CheckpointConfig
    watch: WatchConfig = field(default_factory=WatchConfig)
    drill: DrillConfig = field(default_factory=DrillConfig)
    validation: ValidationConfig
    log_every_steps: int = 1
    trace: bool = False
    format: Format = Format.text
    lints: LintsConfig = field(default_factory=LintsConfig)

    parent: Optional[str] = None
    """Short for stage.parent."""
    branch: bool = False
    """Train a changed meaning as a run beside the one that stands under the same variant and stage."""
    adopt: Optional[str] = None
    """A checkpoint, or a run's directory, to take in as a state of the declared run."""
    plots: Optional[str] = None
    """Folder for the pictures of `plan`."""
    run: Optional[str] = None
    """A run's directory for `verify`, instead of the run that the other settings declare."""
    contains: Optional[str] = None
    """CORPUS:SAMPLE for `verify`: whether, when and how often the run has seen it."""
