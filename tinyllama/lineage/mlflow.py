"""The family tree in MLflow, the only file that knows it. Runs in a process of its own; lineage/relay.py talks to it.

| here | there |
|---|---|
| family | experiment, and registered model |
| stage of a digest, however often interrupted | run, nested below the run of its parent |
| finished stage | version of the model, whose source is the run's directory: no weights are copied |
| corpus | dataset input, its digest being the fingerprint |

Imports MLflow where it is used: naming this module must cost nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllama.lineage.record import Dataset, Measurement, RunRecord, Status
from tinyllama.lineage.relay import detach, serve

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run

PARAMS_PER_CALL = 100
METRICS_PER_CALL = 1000
LONGEST_DATASET_DIGEST = 36
"""MLflow's limits, in entries and characters."""

TEMPORARY = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"}
"""MLflow's error codes for a store that is out of reach."""

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the relay tries again, and knows when to stop
}


def main(uri: str, artifact_root: str) -> None:
    """The recorder's process. A local store keeps its artifacts under `artifact_root`, a server decides for itself."""
    incoming, outgoing = detach()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    serve(MlflowRecorder(uri, Path(artifact_root)), incoming, outgoing)


class MlflowRecorder:
    """One run in the store at `uri`; may block, may raise, may be asked again after it raised."""

    def __init__(self, uri: str, artifact_root: Path) -> None:
        self._uri = uri
        self._artifact_root = artifact_root
        self._is_server = uri.startswith(("http:", "https:", "databricks"))
        self._client: MlflowClient
        self._record: RunRecord
        self._run: Run
        self._last_steps: dict[str, int] = {}

    def start(self, record: RunRecord) -> None:
        self._client, self._record = open_store(self._uri), record
        experiment = self._experiment(record.family)
        tags = self._tags(experiment)
        run = find_run(self._client, experiment, record.digest)
        if run is None:
            name = f"{record.stage}-{record.digest[:12]}"
            run = self._client.create_run(experiment, run_name=name, tags=tags)
        self._run = run
        self._client.update_run(self._id, status="RUNNING")
        self._last_steps = {metric.key: metric.step for metric in run.to_proto().data.metrics}
        self._log_params(tags)
        self._client.log_inputs(self._id, [_dataset_input(dataset) for dataset in record.datasets])

    def metrics(self, measurements: Sequence[Measurement]) -> None:
        """Steps that were recorded before an interruption and are taken again after it stay as they are."""
        from mlflow.entities import Metric

        points = (
            Metric(name, value, measurement.milliseconds, measurement.step)
            for measurement in measurements
            for name, value in measurement.values.items()
            if measurement.step > self._last_steps.get(name, -1)
        )
        while batch := list(islice(points, METRICS_PER_CALL)):
            self._client.log_batch(self._id, metrics=batch)
            self._last_steps.update((point.key, point.step) for point in batch)

    def artifact(self, path: Path) -> None:
        if path.is_dir():
            self._client.log_artifacts(self._id, str(path), path.name)
        else:
            self._client.log_artifact(self._id, str(path))

    def finish(self, status: Status) -> None:
        if status == "FINISHED":
            self._register()
        self._client.set_terminated(self._id, status)

    def is_temporary(self, error: Exception) -> bool:
        """A store out of reach, as opposed to a call that it refuses."""
        code = getattr(error, "error_code", None)
        return code in TEMPORARY or (isinstance(error, OSError) and not isinstance(error, FileNotFoundError))

    @property
    def _id(self) -> str:
        return str(self._run.info.run_id)

    def _experiment(self, family: str) -> str:
        """Its id. Another process may create it at the same time."""
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(family)
        if found is None:
            location = None if self._is_server else (self._artifact_root / family).as_uri()
            try:
                return str(self._client.create_experiment(family, artifact_location=location))
            except MlflowException:
                found = self._client.get_experiment_by_name(family)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _tags(self, experiment: str) -> dict[str, str]:
        record = self._record
        tags = {
            "stage": record.stage,
            "variants": ",".join(record.variants),
            "digest": record.digest,
            "directory": str(record.directory),
        }
        if record.git_commit is not None:
            tags |= {"git_commit": record.git_commit, "mlflow.source.git.commit": record.git_commit}
        if record.parent_digest is not None:
            tags["parent_digest"] = record.parent_digest
            parent = find_run(self._client, experiment, record.parent_digest)
            if parent is not None:
                tags |= {"parent_run_id": parent.info.run_id, "mlflow.parentRunId": parent.info.run_id}
        return tags

    def _log_params(self, tags: dict[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        self._client.log_batch(self._id, tags=[RunTag(name, value) for name, value in tags.items()])
        params = (Param(name, str(value)) for name, value in self._record.params.items())
        while batch := list(islice(params, PARAMS_PER_CALL)):
            self._client.log_batch(self._id, params=batch)

    def _register(self) -> None:
        from mlflow.exceptions import MlflowException

        family = self._record.family
        try:
            self._client.create_registered_model(family)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        if not self._client.search_model_versions(f"run_id = '{self._id}'"):
            # A server accepts no path of another machine as a source; there the run's tag `directory` tells it.
            source = self._run.info.artifact_uri if self._is_server else str(self._record.directory)
            kept = {"stage", "variants", "digest", "parent_digest"}
            tags = {name: value for name, value in self._tags(self._run.info.experiment_id).items() if name in kept}
            self._client.create_model_version(family, source, self._id, tags, await_creation_for=0)


def open_store(uri: str) -> MlflowClient:
    """A client of the store at `uri`. A missing sqlite file is created whole, aside, by one process alone.

    Raises:
        OSError: its folder cannot be written.
    """
    if uri.startswith("sqlite:///"):
        store = Path(uri.removeprefix("sqlite:///"))
        store.parent.mkdir(parents=True, exist_ok=True)
        with _locked(store.with_name(f"{store.name}.lock")):
            if not store.exists():
                fresh = store.with_name(f"{store.name}.new")
                fresh.unlink(missing_ok=True)
                _client_of(f"sqlite:///{fresh}")
                fresh.rename(store)
    return _client_of(uri)


def find_run(client: MlflowClient, experiment: str, digest: str) -> Run | None:
    """The run of a stage's digest."""
    found = client.search_runs([experiment], f"tags.digest = '{digest}'", max_results=1, order_by=["start_time ASC"])
    return found[0] if found else None


def _client_of(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    client = MlflowClient(uri, uri)
    client.search_experiments(max_results=1)  # connects, and creates the tables of a new store
    return client


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _dataset_input(dataset: Dataset) -> DatasetInput:
    from mlflow.entities import Dataset as Entity
    from mlflow.entities import DatasetInput, InputTag

    entity: Any = Entity(
        name=dataset.name,
        digest=dataset.fingerprint[:LONGEST_DATASET_DIGEST],
        source_type="local",
        source=json.dumps({"uri": dataset.source}),
        profile=json.dumps({"samples": dataset.samples}),
    )
    tags = {"mlflow.data.context": "training", "fingerprint": dataset.fingerprint}
    return DatasetInput(entity, [InputTag(name, value) for name, value in tags.items()])
