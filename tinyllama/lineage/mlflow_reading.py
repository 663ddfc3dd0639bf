"""What MLflow has of runs: for those who compare it with their directories, and for those who show it."""

import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tinyllama.lineage import mlflow
from tinyllama.lineage.comparison import Recorded, Version
from tinyllama.lineage.record import History, Points

PointsOf = Callable[[str], dict[str, Points]]
"""The metrics of a run, by its id."""

_METRICS = "SELECT key, step, timestamp, value FROM metrics WHERE run_uuid = ? AND NOT is_nan ORDER BY key, timestamp"


def recorded_runs(uri: str, family: str, digest: str | None) -> list[Recorded]:
    """The runs of a digest in the store at `uri`: one, if all is well."""
    client = mlflow.client_of(uri)
    experiment = client.get_experiment_by_name(family)
    if experiment is None or digest is None:
        return []
    runs = client.search_runs([experiment.experiment_id], f"tags.digest = '{digest}'", order_by=["start_time ASC"])
    return [_recorded(client, family, run) for run in runs]


def _recorded(client: Any, family: str, run: Any) -> Recorded:
    steps = {metric.key: metric.step for metric in run.to_proto().data.metrics}
    return Recorded(
        run_id=run.info.run_id,
        status=run.info.status,
        params=run.data.params,
        tags=run.data.tags,
        fingerprints={
            entry.dataset.name: tag.value
            for entry in run.inputs.dataset_inputs
            for tag in entry.tags
            if tag.key == "fingerprint"
        },
        last_step=steps.get(mlflow.EVERY_STEP),
        versions=tuple(
            Version(str(version.version), version.tags)
            for version in mlflow.versions_of(client, family, run.info.run_id)
        ),
    )


def histories(uri: str, family: str) -> list[History]:
    """Of the runs of a family's stages. A sqlite file's metrics are read without MLflow, which would make an object
    of every point; a run has millions of them.
    """
    client, file = mlflow.client_of(uri), mlflow.sqlite_file(uri)
    return read_histories(client, family, partial(points_in_file, file) if file else partial(points_asked, client))


def read_histories(client: Any, family: str, points_of: PointsOf) -> list[History]:
    experiment = client.get_experiment_by_name(family)
    if experiment is None:
        return []
    runs = client.search_runs([experiment.experiment_id], "tags.digest != ''", order_by=["start_time ASC"])
    return [
        History(
            run_id=run.info.run_id,
            name=str(run.info.run_name),
            status=run.info.status,
            tags=run.data.tags,
            metrics=points_of(run.info.run_id),
            files=_json_files(client, run.info.run_id),
        )
        for run in runs
    ]


def points_asked(client: Any, run: str) -> dict[str, Points]:
    """One metric after the other."""
    return {
        name: _by_step((point.step, point.timestamp, point.value) for point in client.get_metric_history(run, name))
        for name in client.get_run(run).data.metrics
    }


def points_in_file(file: Path, run: str) -> dict[str, Points]:
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=10)) as connection:
        rows = connection.execute(_METRICS, [run])
        return {name: _by_step(row[1:] for row in points) for name, points in groupby(rows, itemgetter(0))}


def _by_step(rows: Iterable[tuple[int, int, float]]) -> Points:
    """Step, milliseconds and value of each point; of a step that was recorded twice, the first."""
    points = np.array(list(rows), np.float64).reshape(-1, 3)
    _, first = np.unique(points[:, 0], return_index=True)
    return points[first]


def _json_files(client: Any, run: str) -> dict[str, str]:
    """At the top of the artifacts, and one folder below."""
    entries = client.list_artifacts(run)
    below = [entry for folder in entries if folder.is_dir for entry in client.list_artifacts(run, folder.path)]
    paths = [entry.path for entry in (*entries, *below) if entry.path.endswith(".json")]
    with TemporaryDirectory() as folder:
        return {path: Path(client.download_artifacts(run, path, folder)).read_text("utf-8") for path in paths}
