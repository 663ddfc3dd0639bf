"""What can be configured, typed. Plain dataclasses: importing them costs nothing, Hydra checks every file against them.

What a run *means* and where it *runs* live in different classes: only the first enters a digest.
A field without a default must be given by a file of conf/ or on the command line.
"""

from dataclasses import dataclass, field
from typing import Any, Dict, Optional

from tinyllama.config.schema.meaning import (
    CorpusConfig,
    MixChoice,
    MixConfig,
    ModelConfig,
    OnBadRow,
    OptimizerConfig,
    OrderConfig,
    PackingConfig,
    RawFormat,
    ScheduleConfig,
    StageConfig,
    TokenizerConfig,
    Tokens,
)
from tinyllama.config.schema.placement import (
    ClusterConfig,
    ContainerConfig,
    ContainerKind,
    PathsConfig,
    Precision,
    SlurmConfig,
    TrackingConfig,
)
from tinyllama.config.schema.work import (
    CheckpointConfig,
    DrillConfig,
    EvaluationConfig,
    ExportConfig,
    ExportPrecision,
    Format,
    GenerationConfig,
    LintsConfig,
    PreparationConfig,
    PrepareAction,
    ReportConfig,
    ReportSource,
    TokenizerEngine,
    ValidationConfig,
    WatchConfig,
    WatchMode,
)

__all__ = [
    "CheckpointConfig",
    "ClusterConfig",
    "ContainerConfig",
    "ContainerKind",
    "CorpusConfig",
    "DrillConfig",
    "EvaluationConfig",
    "ExportConfig",
    "ExportPrecision",
    "Format",
    "GenerationConfig",
    "LintsConfig",
    "MixChoice",
    "MixConfig",
    "ModelConfig",
    "OnBadRow",
    "OptimizerConfig",
    "OrderConfig",
    "PackingConfig",
    "PathsConfig",
    "Precision",
    "PreparationConfig",
    "PrepareAction",
    "RawFormat",
    "ReportConfig",
    "ReportSource",
    "RunConfig",
    "ScheduleConfig",
    "SlurmConfig",
    "StageConfig",
    "TokenizerConfig",
    "TokenizerEngine",
    "Tokens",
    "TrackingConfig",
    "ValidationConfig",
    "WatchConfig",
    "WatchMode",
]


@dataclass(kw_only=True)
class RunConfig:
    """One stage of one variant, whole."""

    family: str
    variant: str
    seed: int

    model: ModelConfig
    tokenizer: TokenizerConfig
    packing: PackingConfig = field(default_factory=PackingConfig)
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
    preparation: PreparationConfig = field(default_factory=PreparationConfig)
    validation: ValidationConfig
    export: ExportConfig = field(default_factory=ExportConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    log_every_steps: int = 1
    trace: bool = False
    profile: bool = False
    """`train` writes a trace of a few steps, and a table of where a step goes."""
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
    """A run's directory for `verify` and the leaves, instead of the run that the other settings declare."""
    action: PrepareAction = PrepareAction.prepare
    """What `prepare` does."""
    sample: Optional[int] = None
    """Which sample `prepare action=show` shows, counted from 0; a validation sample with `split=validation`."""
    split: str = "train"
    """Of the corpus that `prepare action=show` reads."""
    contains: Optional[str] = None
    """CORPUS:SAMPLE for `verify`: whether, when and how often the run has seen it."""
    out: Optional[str] = None
    """What `export` (a folder) and `report` (a file) write."""
    at_tokens: Optional[Tokens] = None
    """The checkpoint at this position of life, for `export`, `evaluate` and `generate`; null: the last."""
    prompt: Optional[str] = None
    """What `generate` continues; null: the text on standard input."""
