"""What is recorded of a run, and the interfaces of those who record it. Plain values, no vendor."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Status = Literal["FINISHED", "KILLED", "FAILED"]

Points = NDArray[np.float64]
"""Of a metric: [points, (step, milliseconds since 1970, value)], by step, each step once."""


@dataclass(frozen=True)
class Dataset:
    """A prepared corpus as a run read it."""

    name: str
    fingerprint: str
    """Of its content and its tokenizer."""
    source: str
    """Where it lies."""
    samples: int


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One stage of a family: what it is, what it came from, what it was fed, where it runs and leaves its files."""

    family: str
    stage: str
    variants: tuple[str, ...]
    """Those that share this run."""
    digest: str
    parent_digest: str | None
    model_digest: str
    """Runs of equal digests compute alike: their speed can be compared."""
    params: Mapping[str, str | int | float]
    """The resolved meaning, flat: {"model.num_layers": 22}."""
    datasets: tuple[Dataset, ...]
    git_commit: str | None = None
    branch: bool = False
    """Whether it was trained on purpose beside another run of its variant and stage."""
    adopted_from: str | None = None
    """The checkpoint that was taken in as its state."""

    cluster: str
    gpu: str | None
    ranks: int
    zero_stage: int
    first_step: int = 0
    """Steps that were taken before this life of the run."""
    every_steps: int = 1
    """Steps without a validation are recorded once in so many."""

    directory: Path
    """The run's own, where its weights stay. The others lie inside."""
    journal: Path
    """An object per step; what was measured is read from there and nowhere else."""
    done: Path
    """There when the run has come to its end."""
    lock: Path
    """Held (flock) by the process that trains."""
    outbox: Path
    """Folder of what a store has not been given yet; lineage/outbox.py."""
    evaluations: Path
    """Folder of what was measured of its checkpoints; lineage/evaluations.py."""


@dataclass(frozen=True, kw_only=True)
class CorpusRecord:
    """A version of a prepared corpus."""

    family: str
    name: str
    """Of the version: CORPUS@FINGERPRINT, shortened."""
    dataset: Dataset
    tags: Mapping[str, str]
    params: Mapping[str, str | int | float]
    """What it was made from, and how."""
    metrics: Mapping[str, float]
    """What it came to."""
    artifacts: tuple[str, ...]
    """Files to keep with it."""


@dataclass(frozen=True)
class Measurement:
    """The values of one step, and when they were taken."""

    step: int
    milliseconds: int
    """Since 1970."""
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class History:
    """All that a store has of a run."""

    run_id: str
    name: str
    status: str
    tags: Mapping[str, str]
    metrics: Mapping[str, Points]
    files: Mapping[str, str]
    """Those of its artifacts that are JSON, by their paths there."""


class Tracker(ABC):
    """Keeps the lineage of runs. One tracker records one run, from its main process alone.

    Measurements need no call: a tracker follows the run's journal. No method raises or waits for what lies outside this
    process, save `finish` for a bounded time: a store that is slow or down costs a warning, never a step, and gets
    what it missed when it is back.
    """

    @abstractmethod
    def start(self, record: RunRecord) -> None:
        """Open the run of this digest, or go on with it after an interruption."""

    @abstractmethod
    def artifacts(self, paths: Sequence[Path]) -> None:
        """Files and folders to keep with the run, as they are when it ends."""

    @abstractmethod
    def finish(self, status: Status) -> None:
        """Deliver what is pending and close the run; a FINISHED one becomes a version of the family's model."""


class Store(ABC):
    """Where runs are recorded."""

    @abstractmethod
    def tracker(self) -> Tracker:
        """For one run."""

    @abstractmethod
    def deliver(self, outbox: Path) -> None:
        """Give the store what it has missed of the run of this outbox and of its family; waits for a bounded time."""

    @abstractmethod
    def record_evaluations(self, records: Sequence[RunRecord]) -> None:
        """Give the store what was measured of runs' checkpoints; as `deliver`."""

    @abstractmethod
    def throughput(self, model_digest: str, cluster: str) -> list[float]:
        """Tokens per second and rank of finished runs of a model on a cluster."""

    @abstractmethod
    def disagreements(self, record: RunRecord, finished: bool, last_step: int) -> list[str] | None:
        """What the store says otherwise than the run's own files, a sentence each; None if it keeps nothing."""

    @abstractmethod
    def record_corpora(self, records: Sequence[CorpusRecord]) -> None:
        """Record those that are not recorded yet; waits for a bounded time, and never raises."""

    @abstractmethod
    def histories(self, family: str) -> list[History]:
        """Of all runs of a family.

        Raises:
            ConfigError: the store cannot be asked.
        """
