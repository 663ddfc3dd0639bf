"""The tracker that keeps nothing: for ranks other than the main one, and for `tracking=none`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tinyllama.lineage.record import RunRecord, Status, Tracker


class NullTracker(Tracker):
    def start(self, record: RunRecord) -> None:
        pass

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def artifacts(self, paths: Sequence[Path]) -> None:
        pass

    def finish(self, status: Status) -> None:
        pass
