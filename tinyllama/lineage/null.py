"""The tracker that keeps nothing: for ranks other than the main one, and for `tracking=none`."""

from collections.abc import Sequence
from pathlib import Path

from tinyllama.errors import ConfigError
from tinyllama.lineage.record import CorpusRecord, History, RunRecord, Status, Store, Tracker


class NullTracker(Tracker):
    def start(self, record: RunRecord) -> None:
        pass

    def artifacts(self, paths: Sequence[Path]) -> None:
        pass

    def finish(self, status: Status) -> None:
        pass


class NullStore(Store):
    def tracker(self) -> Tracker:
        return NullTracker()

    def deliver(self, outbox: Path) -> None:
        pass

    def record_evaluations(self, records: Sequence[RunRecord]) -> None:
        pass

    def throughput(self, model_digest: str, cluster: str) -> list[float]:
        return []

    def disagreements(self, record: RunRecord, finished: bool, last_step: int) -> list[str] | None:
        return None

    def record_corpora(self, records: Sequence[CorpusRecord]) -> None:
        pass

    def histories(self, family: str) -> list[History]:
        raise ConfigError("tracking=none keeps nothing; take report.source=runs")
