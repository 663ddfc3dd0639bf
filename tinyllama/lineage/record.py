"""What is recorded of a run, and the interface of those who record it. Plain values, no vendor."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["FINISHED", "KILLED", "FAILED"]


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
    """One stage of a family: what it is, what it came from, what it was fed."""

    family: str
    stage: str
    variants: tuple[str, ...]
    """Those that share this run."""
    digest: str
    parent_digest: str | None
    params: Mapping[str, str | int | float]
    """The resolved meaning, flat: {"model.num_layers": 22}."""
    datasets: tuple[Dataset, ...]
    git_commit: str | None
    directory: Path
    """The run's directory, where its weights stay."""


@dataclass(frozen=True)
class Measurement:
    """The values of one step, and when they were taken."""

    step: int
    milliseconds: int
    """Since 1970."""
    values: Mapping[str, float]


class Tracker(ABC):
    """Keeps the lineage of runs. One tracker records one run, from its main process alone.

    No method raises or waits for what lies outside this process, save `finish` for a bounded time: a tracker that is
    slow or down costs a warning, never a step. What it missed stands in the run's own files.
    """

    @abstractmethod
    def start(self, record: RunRecord) -> None:
        """Open the run of this digest, or go on with it after an interruption."""

    @abstractmethod
    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Values of one optimizer step, counted from the start of the stage."""

    @abstractmethod
    def artifacts(self, paths: Sequence[Path]) -> None:
        """Files and folders to keep with the run. They must stay where they are until `finish`."""

    @abstractmethod
    def finish(self, status: Status) -> None:
        """Deliver what is pending and close the run; a FINISHED one becomes a version of the family's model."""
