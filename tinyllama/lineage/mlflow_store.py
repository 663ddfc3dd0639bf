"""MLflow as a store: its tracker, and what may be asked of it. Its calls stand in lineage/mlflow.py."""

import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from tinyllama.errors import ConfigError
from tinyllama.lineage import mlflow, mlflow_corpora, mlflow_reading
from tinyllama.lineage.comparison import compare
from tinyllama.lineage.outbox import Letter, Outbox, is_training
from tinyllama.lineage.record import CorpusRecord, History, RunRecord, Store, Tracker
from tinyllama.lineage.relay import Relay, RelayTracker, tell_late

log = logging.getLogger(__name__)

QUICKLY = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "2", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
"""For questions whose answer can be done without."""

_RATES = """
SELECT rate.value FROM latest_metrics rate
JOIN runs USING (run_uuid)
JOIN tags model ON model.run_uuid = rate.run_uuid AND model.key = 'model_digest' AND model.value = :model_digest
JOIN tags cluster ON cluster.run_uuid = rate.run_uuid AND cluster.key = 'cluster' AND cluster.value = :cluster
WHERE rate.key = :rate AND runs.status = 'FINISHED' AND runs.lifecycle_stage = 'active'
ORDER BY runs.start_time
"""


class MlflowStore(Store):
    """The store at `uri`; by default a sqlite file in the folder of all runs."""

    def __init__(self, uri: str | None, runs: Path) -> None:
        self._name = uri
        self._runs = runs
        self._uri = uri or f"sqlite:///{runs / 'mlflow.db'}"

    def tracker(self) -> Tracker:
        return RelayTracker(self._relay(), self._name)

    def deliver(self, outbox: Path) -> None:
        own = Outbox(outbox)
        missing = bool(own.letters(self._name))
        if missing or any(other.letters(self._name) for other in own.others()):
            relay = self._relay()
            relay.start(outbox)
            relay.finish()
        if missing and not own.letters(self._name):
            tell_late(outbox.parent.name)

    def record_evaluations(self, records: Sequence[RunRecord]) -> None:
        """By one recorder for each family, which delivers what is pending of all of its runs."""
        families = {}
        for record in records:
            if not is_training(record):  # else its own recorder sees them
                families[record.family] = outbox = Outbox(record.outbox)
                if not outbox.letters(self._name):
                    outbox.put(Letter(self._name, record))
        for outbox in families.values():
            relay = self._relay()
            relay.start(outbox.folder)
            relay.finish()

    def throughput(self, model_digest: str, cluster: str) -> list[float]:
        """A sqlite file is read without MLflow, whose import would be most of what a plan takes."""
        file = mlflow.sqlite_file(self._uri)
        if file is None:
            with _environment(QUICKLY):
                return mlflow.finished_rates(self._uri, model_digest, cluster)
        if not file.is_file():
            return []
        asked = {"model_digest": model_digest, "cluster": cluster, "rate": mlflow.RATE}
        try:
            with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=1)) as connection:
                return [float(value) for (value,) in connection.execute(_RATES, asked)]
        except sqlite3.Error:  # locked, or written by an MLflow whose tables are others
            return []

    def disagreements(self, record: RunRecord, finished: bool, last_step: int) -> list[str] | None:
        if Outbox(record.outbox).letters(self._name):
            return ["not everything has been delivered to MLflow yet; the next `train` of this family delivers it"]
        file = mlflow.sqlite_file(self._uri)
        if file is not None and not file.is_file():
            return [f"store: a record of the run here, no file {file} there"]
        try:
            with _environment(mlflow.ENVIRONMENT):
                found = mlflow_reading.recorded_runs(self._uri, record.family, record.digest)
                parents = mlflow_reading.recorded_runs(self._uri, record.family, record.parent_digest)
        except Exception as error:
            return [f"{self._uri} cannot be asked: {' '.join(str(error).split())[:300]}"]
        if len(found) != 1:
            return [f"runs of digest {record.digest[:12]}: 1 here, {len(found)} there"]
        return list(
            compare(
                record,
                found[0],
                parents[0] if parents else None,
                finished=finished,
                last_step=last_step,
                longest_param=mlflow.LONGEST_PARAM,
            )
        )

    def record_corpora(self, records: Sequence[CorpusRecord]) -> None:
        problem = mlflow_corpora.send(self._uri, self._artifacts, records)
        if problem is not None:
            names = ", ".join(record.name for record in records)
            log.warning("tracking %s; %s will be recorded when the same command is given again", problem, names)

    def histories(self, family: str) -> list[History]:
        file = mlflow.sqlite_file(self._uri)
        if file is not None and not file.is_file():
            raise ConfigError(
                f"there is no MLflow store {file}; set tracking.uri to another, or take report.source=runs"
            )
        try:
            with _environment(mlflow.ENVIRONMENT):
                return mlflow_reading.histories(self._uri, family)
        except Exception as error:
            raise ConfigError(
                f"tracking.uri={self._uri} cannot be asked ({' '.join(str(error).split())[:300]}); "
                f"take report.source=runs, or another tracking.uri"
            ) from error

    @property
    def _artifacts(self) -> Path:
        return self._runs / "mlartifacts"

    def _relay(self) -> Relay:
        return Relay("tinyllama.lineage.mlflow", [self._uri, str(self._artifacts), self._name or ""])


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """With these settings, where a person has not chosen others."""
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
