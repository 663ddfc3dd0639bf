"""Config -> the tracker that it names."""

from collections.abc import Callable
from pathlib import Path

from tinyllama.config.schema import TrackingConfig
from tinyllama.errors import unknown
from tinyllama.lineage.null import NullTracker
from tinyllama.lineage.record import Tracker
from tinyllama.lineage.relay import RelayTracker


def _mlflow(uri: str | None, runs: Path) -> Tracker:
    runs = runs.absolute()
    return RelayTracker(
        "tinyllama.lineage.mlflow", [uri or f"sqlite:///{runs / 'mlflow.db'}", str(runs / "mlartifacts")]
    )


def _none(uri: str | None, runs: Path) -> Tracker:
    return NullTracker()


TRACKERS: dict[str, Callable[[str | None, Path], Tracker]] = {"mlflow": _mlflow, "none": _none}


def build_tracker(config: TrackingConfig, runs: Path) -> Tracker:
    """The tracker of one run; `runs` is the folder of all run directories, where a local store lies.

    Raises:
        ConfigError: no tracker has this name.
    """
    if config.name not in TRACKERS:
        raise unknown("tracking.name", config.name, TRACKERS)
    return TRACKERS[config.name](config.uri, runs)
