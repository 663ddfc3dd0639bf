"""What is done beside training, and how each command goes about it. None of it enters a digest."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, List, Optional

from tinyllama.config.schema.meaning import Tokens


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


class PrepareAction(Enum):
    """What `prepare` is to do."""

    prepare = "prepare"
    check = "check"
    show = "show"
    upload = "upload"


class TokenizerEngine(Enum):
    """What encodes: `kitoken` is taken only where it is proven to give sentencepiece's ids."""

    sentencepiece = "sentencepiece"
    kitoken = "kitoken"


@dataclass(kw_only=True)
class PreparationConfig:
    """How `prepare` goes about it; what it comes to depends on none of this."""

    engine: TokenizerEngine = TokenizerEngine.sentencepiece
    processes: Optional[int] = None
    """null: one per core, where there is enough to do."""
    compression: Optional[str] = "zstd:3"
    """Of shards that are uploaded; null: none."""


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


class ExportPrecision(Enum):
    """What exported weights are stored in."""

    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


@dataclass(kw_only=True)
class ExportConfig:
    """A folder in Hugging Face's layout."""

    dtype: ExportPrecision = ExportPrecision.bf16
    shard_gib: float = 0.5
    """Limit of one file of weights; whoever loads them has a copy in memory and one file mapped at a time."""


@dataclass(kw_only=True)
class GenerationConfig:
    """How text is continued."""

    max_tokens: int = 128
    """New tokens at most."""
    temperature: float = 0.8
    """0: always the likeliest token."""
    top_k: Optional[int] = None
    """Choose among so many of the likeliest; null: no limit."""
    top_p: Optional[float] = None
    """Choose among the likeliest that together have this probability; null: all."""
    seed: int = 0


@dataclass(kw_only=True)
class EvaluationConfig:
    """What `evaluate` asks of models, through lm-eval."""

    tasks: List[str] = field(default_factory=lambda: ["commonsense", "perplexity"])
    """Suites (evaluation/suites.py), lm-eval's tasks, tasks of `folder`, and `perplexity` on held-out samples."""
    folder: Optional[str] = None
    """Further tasks in lm-eval's YAML; their data may lie there too."""
    limit: Optional[int] = None
    """At most so many questions of each task; null: all."""
    batch_size: int = 8
    """Sequences at a time."""
    models: List[str] = field(default_factory=list)
    """Folders in Hugging Face's layout, or directories of runs, to be evaluated besides."""
    run_code: bool = False
    """Allow tasks that run what the model has written, as humaneval does."""
    every_tokens: Optional[Tokens] = None
    """Evaluate during training each time so many tokens were trained on; null: never."""


class ReportSource(Enum):
    """What a report is made from."""

    runs = "runs"
    mlflow = "mlflow"


@dataclass(kw_only=True)
class ReportConfig:
    source: ReportSource = ReportSource.runs
    """The directories of the family's runs, or what the tracking store has of them."""
