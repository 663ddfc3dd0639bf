"""Config -> the store that it names, and what others ask of it."""

from collections.abc import Callable, Sequence
from pathlib import Path

from tinyllama.config.schema import TrackingConfig
from tinyllama.errors import unknown
from tinyllama.lineage.mlflow_store import MlflowStore
from tinyllama.lineage.null import NullStore
from tinyllama.lineage.record import CorpusRecord, History, RunRecord, Store, Tracker

TRACKERS: dict[str, Callable[[str | None, Path], Store]] = {
    "mlflow": MlflowStore,
    "none": lambda uri, runs: NullStore(),
}


def build_tracker(config: TrackingConfig, runs: Path) -> Tracker:
    """The tracker of one run; `runs` is the folder of all run directories, where a local store lies.

    Raises:
        ConfigError: no tracker has this name.
    """
    return _store(config, runs).tracker()


def deliver_pending(config: TrackingConfig, runs: Path, outbox: Path) -> None:
    """Give the store what it has missed of the run of this outbox and of its family. Quick when that is nothing."""
    _store(config, runs).deliver(outbox)


def record_evaluations(config: TrackingConfig, runs: Path, records: Sequence[RunRecord]) -> None:
    """Record what was measured of runs' checkpoints. What the store does not take stays in their outboxes."""
    _store(config, runs).record_evaluations(records)


def measured_throughput(config: TrackingConfig, runs: Path, model_digest: str, cluster: str) -> list[float]:
    """Tokens per second and rank of the finished runs of a model on a cluster; none if the store cannot be asked."""
    return _store(config, runs).throughput(model_digest, cluster)


def disagreements(
    config: TrackingConfig, runs: Path, record: RunRecord, finished: bool, last_step: int
) -> list[str] | None:
    """What the store says otherwise than the run's own files, a sentence each; None if it keeps nothing.

    Args:
        last_step: the last one of the run's journal.
    """
    return _store(config, runs).disagreements(record, finished, last_step)


def record_corpora(config: TrackingConfig, runs: Path, records: Sequence[CorpusRecord]) -> None:
    """Record versions of prepared corpora, each once. What the store does not take costs a warning and no more."""
    _store(config, runs).record_corpora(records)


def histories(config: TrackingConfig, runs: Path, family: str) -> list[History]:
    """All that the store has of the runs of a family.

    Raises:
        ConfigError: it cannot be asked, or keeps nothing.
    """
    return _store(config, runs).histories(family)


def _store(config: TrackingConfig, runs: Path) -> Store:
    if config.name not in TRACKERS:
        raise unknown("tracking.name", config.name, TRACKERS)
    return TRACKERS[config.name](config.uri, runs.absolute())
