"""The family tree in MLflow, the only file that knows it. Its recorder runs in a process of its own (lineage/relay.py).

| here | there |
|---|---|
| family | experiment, and registered model |
| stage of a digest, however often interrupted | run, nested below the run of its parent |
| finished stage | version of the model, whose source is the run's directory: no weights are copied |
| corpus | dataset input, its digest being the fingerprint |
| prepared version of a corpus | run (lineage/mlflow_corpora.py) |

All of it is read back by lineage/mlflow_reading.py.

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

from tinyllama.lineage.delivery import detach, serve
from tinyllama.lineage.outbox import Outbox
from tinyllama.lineage.pages import Place, run_note, run_page, version_note, version_page
from tinyllama.lineage.record import Dataset, Measurement, RunRecord, Status

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run
    from mlflow.entities.model_registry import ModelVersion

PARAMS_PER_CALL = 100
METRICS_PER_CALL = 1000
LONGEST_DATASET_DIGEST = 36
LONGEST_PARAM = 6000
"""MLflow's limits, in entries and characters."""

EVERY_STEP = "tokens"
"""A metric that each recorded step has: its history tells which steps are there."""

RATE = "tokens_per_second_per_rank"

TEMPORARY = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"}
"""MLflow's error codes for a store that is out of reach."""

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # who delivers tries again, and knows when to stop
}


def main(uri: str, artifact_root: str, store: str, outbox: str) -> None:
    """The recorder's process. A local store keeps its artifacts under `artifact_root`, a server decides for itself.

    Args:
        store: `tracking.uri`, which letters name; "" for the default store.
    """
    incoming, outgoing = detach()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    serve(lambda: MlflowRecorder(uri, Path(artifact_root)), Outbox(Path(outbox)), store or None, incoming, outgoing)


class MlflowRecorder:
    """One run in the store at `uri`; may block, may raise, may be asked again after it raised."""

    def __init__(self, uri: str, artifact_root: Path) -> None:
        self._uri = uri
        self._artifact_root = artifact_root
        self._client: MlflowClient
        self._record: RunRecord
        self._run: Run
        self._known_steps: set[int] = set()

    def start(self, record: RunRecord, milliseconds: int | None) -> None:
        self._client, self._record = open_store(self._uri), record
        experiment = experiment_of(self._client, record.family, self._uri, self._artifact_root)
        tags = self._tags()
        run = find_run(self._client, experiment, record.digest)
        if run is None:
            name = f"{record.stage}-{record.digest[:12]}"
            run = self._client.create_run(experiment, start_time=milliseconds, run_name=name, tags=tags)
        self._run = run
        self._client.update_run(self._id, status="RUNNING")
        self._known_steps = {point.step for point in self._client.get_metric_history(self._id, EVERY_STEP)}
        self._log_params(tags)
        self._client.log_inputs(self._id, [dataset_input(dataset) for dataset in record.datasets])
        self._tree.settle(record.digest)

    def metrics(self, measurements: Sequence[Measurement]) -> None:
        """Steps that were recorded before an interruption and are taken again after it stay as they are."""
        from mlflow.entities import Metric

        missing = (each for each in measurements if each.step not in self._known_steps)
        for steps in _filled(missing, METRICS_PER_CALL):  # a step is there as a whole or not at all
            points = [
                Metric(name, value, measurement.milliseconds, measurement.step)
                for measurement in steps
                for name, value in measurement.values.items()
            ]
            self._client.log_batch(self._id, metrics=points)
            self._known_steps.update(step.step for step in steps)

    def evaluations(self, measurements: Sequence[Measurement]) -> None:
        """What is there with the same value stays as it was recorded, by training or an earlier evaluation."""
        from mlflow.entities import Metric

        names = sorted({name for measurement in measurements for name in measurement.values})
        known = {
            (name, point.step, point.value)
            for name in names
            for point in self._client.get_metric_history(self._id, name)
        }
        points = [
            Metric(name, value, measurement.milliseconds, measurement.step)
            for measurement in measurements
            for name, value in measurement.values.items()
            if (name, measurement.step, value) not in known
        ]
        for begin in range(0, len(points), METRICS_PER_CALL):
            self._client.log_batch(self._id, metrics=points[begin : begin + METRICS_PER_CALL])

    def artifact(self, path: Path) -> None:
        if path.is_dir():
            self._client.log_artifacts(self._id, str(path), path.name)
        else:
            self._client.log_artifact(self._id, str(path))

    def finish(self, status: Status, milliseconds: int | None, typical_rate: float | None) -> None:
        if typical_rate is not None:
            rate = typical_rate / self._record.ranks
            self._client.log_metric(self._id, RATE, rate, milliseconds, max(self._known_steps, default=0))
        if status == "FINISHED":
            self._register()
            self._tree.settle(self._record.digest)
        self._client.set_terminated(self._id, status, milliseconds)

    def is_temporary(self, error: Exception) -> bool:
        """A store out of reach, as opposed to a call that it refuses."""
        code = getattr(error, "error_code", None)
        return code in TEMPORARY or (isinstance(error, OSError) and not isinstance(error, FileNotFoundError))

    @property
    def _id(self) -> str:
        return str(self._run.info.run_id)

    @property
    def _tree(self) -> _Tree:
        return _Tree(self._client, self._run.info.experiment_id, self._record.family)

    def _tags(self) -> dict[str, str]:
        record = self._record
        tags: dict[str, str | int | None] = {
            "stage": record.stage,
            "variants": ",".join(record.variants),
            "digest": record.digest,
            "parent_digest": record.parent_digest,
            "model_digest": record.model_digest,
            "directory": str(record.directory),
            "cluster": record.cluster,
            "gpu": record.gpu,
            "ranks": record.ranks,
            "zero_stage": record.zero_stage,
            "branch": "true" if record.branch else None,
            "adopted_from": record.adopted_from,
            "git_commit": record.git_commit,
            "mlflow.source.git.commit": record.git_commit,
        }
        return {name: str(value) for name, value in tags.items() if value is not None}

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
        if not versions_of(self._client, family, self._id):
            # A server accepts no path of another machine as a source; there the run's tag `directory` tells it.
            source = self._run.info.artifact_uri if is_server(self._uri) else str(self._record.directory)
            kept = {"stage", "variants", "digest", "parent_digest"}
            tags = {name: value for name, value in self._tags().items() if name in kept}
            self._client.create_model_version(family, source, self._id, tags, await_creation_for=0)


class _Tree:
    """A family's runs and versions as they hang together, whatever the order in which they arrived."""

    def __init__(self, client: MlflowClient, experiment: str, family: str) -> None:
        self._client, self._experiment, self._family = client, experiment, family

    def settle(self, digest: str) -> None:
        """Write at the run of a digest, its version and all of its descendants what follows from their ancestors."""
        run = find_run(self._client, self._experiment, digest)
        assert run is not None
        self._settle(run, self._path_to(run.data.tags.get("parent_digest")))

    def _settle(self, run: Run, ancestors: list[Place]) -> None:
        tags, here = run.data.tags, self._place(run)
        parent = ancestors[-1] if ancestors else None
        if parent is not None and parent.run_id is not None:
            for name in ("parent_run_id", "mlflow.parentRunId"):
                self._set(run, name, parent.run_id)
        self._set(run, "mlflow.note.content", run_note([*ancestors, here], tags.get("directory", "")))
        for version in versions_of(self._client, self._family, run.info.run_id):
            if parent is not None and parent.version not in (None, version.tags.get("parent_version")):
                self._client.set_model_version_tag(self._family, version.version, "parent_version", parent.version)
            note = version_note([*ancestors, here])
            if version.description != note:
                self._client.update_model_version(self._family, version.version, note)
        for child in self._client.search_runs([self._experiment], f"tags.parent_digest = '{tags['digest']}'"):
            self._settle(child, [*ancestors, here])

    def _set(self, run: Run, name: str, value: str) -> None:
        if run.data.tags.get(name) != value:
            self._client.set_tag(run.info.run_id, name, value)

    def _path_to(self, digest: str | None) -> list[Place]:
        """The run of a digest and its ancestors, as far as they are known here, the root first."""
        if digest is None:
            return []
        run = find_run(self._client, self._experiment, digest)
        if run is None:
            return [Place(digest)]
        return [*self._path_to(run.data.tags.get("parent_digest")), self._place(run)]

    def _place(self, run: Run) -> Place:
        tags = run.data.tags
        version = next((str(found.version) for found in versions_of(self._client, self._family, run.info.run_id)), None)
        return Place(
            digest=tags["digest"],
            stage=tags["stage"],
            variants=", ".join(tags["variants"].split(",")),
            run_id=run.info.run_id,
            page=run_page(self._experiment, run.info.run_id),
            version=version,
            version_page=version_page(self._family, version or ""),
        )


def open_store(uri: str) -> MlflowClient:
    """A client of the store at `uri`. A missing sqlite file is created whole, aside, by one process alone.

    Raises:
        OSError: its folder cannot be written.
    """
    store = sqlite_file(uri)
    if store is not None:
        store.parent.mkdir(parents=True, exist_ok=True)
        with _locked(store.with_name(f"{store.name}.lock")):
            if not store.exists():
                fresh = store.with_name(f"{store.name}.new")
                fresh.unlink(missing_ok=True)
                client_of(f"sqlite:///{fresh}")
                fresh.rename(store)
    return client_of(uri)


def experiment_of(client: MlflowClient, family: str, uri: str, artifact_root: Path) -> str:
    """The id of a family's experiment, created where it is missing. Another process may create it at the same time."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(family)
    if found is None:
        location = None if is_server(uri) else (artifact_root / family).as_uri()
        try:
            return str(client.create_experiment(family, artifact_location=location))
        except MlflowException:
            found = client.get_experiment_by_name(family)
            if found is None:
                raise
    return str(found.experiment_id)


def is_server(uri: str) -> bool:
    return uri.startswith(("http:", "https:", "databricks"))


def sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite store."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def find_run(client: MlflowClient, experiment: str, digest: str) -> Run | None:
    """The run of a stage's digest."""
    found = client.search_runs([experiment], f"tags.digest = '{digest}'", max_results=1, order_by=["start_time ASC"])
    return found[0] if found else None


def versions_of(client: MlflowClient, family: str, run_id: str) -> list[ModelVersion]:
    """What a run has become among the versions of its family's model: one, or none yet."""
    return list(client.search_model_versions(f"name = '{family}' and run_id = '{run_id}'"))


def client_of(uri: str) -> MlflowClient:
    """A client of a store that is there."""
    from mlflow import MlflowClient

    client = MlflowClient(uri, uri)
    client.search_experiments(max_results=1)  # connects, and creates the tables of a new store
    return client


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _filled(measurements: Iterator[Measurement], points: int) -> Iterator[list[Measurement]]:
    """Neighbouring steps that have up to so many points together."""
    steps: list[Measurement] = []
    filled = 0
    for measurement in measurements:
        if filled and filled + len(measurement.values) > points:
            yield steps
            steps, filled = [], 0
        steps.append(measurement)
        filled += len(measurement.values)
    if steps:
        yield steps


def dataset_input(dataset: Dataset) -> DatasetInput:
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


# ---------------------------------------------------------------- what is there


def finished_rates(uri: str, model_digest: str, cluster: str) -> list[float]:
    """Tokens per second and rank of finished runs of a model on a cluster; none if a server does not answer."""
    from mlflow.exceptions import MlflowException

    asked = f"tags.model_digest = '{model_digest}' and tags.cluster = '{cluster}' and attributes.status = 'FINISHED'"
    try:
        client = client_of(uri)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(experiments, asked, order_by=["start_time ASC"])
    except (MlflowException, OSError):
        return []
    return [run.data.metrics[RATE] for run in runs if RATE in run.data.metrics]
