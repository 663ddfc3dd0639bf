"""Prepared corpora in MLflow: each version a run of the family's experiment, beside the runs that read it.

It is recorded by a process of its own: MLflow takes seconds to import, and its store may not answer at all. A run that
is FINISHED has everything; one that is not was interrupted, and is filled up by the next who comes.
"""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from tinyllama.lineage import mlflow
from tinyllama.lineage.record import CorpusRecord, Dataset
from tinyllama.lineage.relay import recorder_command

KIND = "corpus"
"""The tag `kind` of these runs; no run of a stage has it."""
PATIENCE_SECONDS = 60.0
"""Creating a sqlite store takes 10 of them."""
ENVIRONMENT = mlflow.ENVIRONMENT | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}

_RECORDED = """
SELECT 1 FROM runs
JOIN experiments USING (experiment_id)
JOIN tags kind ON kind.run_uuid = runs.run_uuid AND kind.key = 'kind' AND kind.value = :kind
JOIN tags print ON print.run_uuid = runs.run_uuid AND print.key = 'fingerprint' AND print.value = :fingerprint
WHERE experiments.name = :family AND runs.status = 'FINISHED' AND runs.lifecycle_stage = 'active'
"""


def send(uri: str, artifact_root: Path, records: Sequence[CorpusRecord]) -> str | None:
    """Have the store record what it lacks; returns what went wrong, in words that go on after "tracking"."""
    missing = [record for record in records if not _is_in_file(uri, record)]
    if not missing:
        return None
    try:
        done = subprocess.run(
            recorder_command(__name__, [uri, str(artifact_root)]),
            input=json.dumps([asdict(record) for record in missing]),
            env=ENVIRONMENT | os.environ,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"has not answered within {PATIENCE_SECONDS:.0f} seconds"
    except OSError as error:
        return f"could not be started: {error}"
    return None if done.returncode == 0 else f"failed: {' '.join(done.stderr.split())[-300:]}"


def main(uri: str, artifact_root: str) -> None:
    """The recorder's process; standard input has the records. Says what failed on standard error, and leaves with 1."""
    records = [_parse(fields) for fields in json.load(sys.stdin)]
    try:
        for record in records:
            _record(uri, Path(artifact_root), record)
    except Exception as error:
        print(error, file=sys.stderr)
        sys.exit(1)


def _record(uri: str, artifact_root: Path, record: CorpusRecord) -> None:
    client = mlflow.open_store(uri)
    experiment = mlflow.experiment_of(client, record.family, uri, artifact_root)
    asked = f"tags.kind = '{KIND}' and tags.fingerprint = '{record.dataset.fingerprint}'"
    runs = client.search_runs([experiment], asked, max_results=1, order_by=["start_time ASC"])
    tags = {**record.tags, "kind": KIND, "fingerprint": record.dataset.fingerprint}
    run = runs[0] if runs else client.create_run(experiment, run_name=record.name, tags=tags)
    if run.info.status == "FINISHED":
        return
    for name, value in record.params.items():
        client.log_param(run.info.run_id, name, str(value)[: mlflow.LONGEST_PARAM])
    for name, number in record.metrics.items():
        client.log_metric(run.info.run_id, name, number)
    client.log_inputs(run.info.run_id, [mlflow.dataset_input(record.dataset)])
    for path in record.artifacts:
        client.log_artifact(run.info.run_id, path)
    client.set_terminated(run.info.run_id, "FINISHED")


def _is_in_file(uri: str, record: CorpusRecord) -> bool:
    """Whether a sqlite store has it, which is read without MLflow; of others this is not known here."""
    file = mlflow.sqlite_file(uri)
    if file is None or not file.is_file():
        return False
    asked = {"kind": KIND, "fingerprint": record.dataset.fingerprint, "family": record.family}
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=1)) as connection:
            return connection.execute(_RECORDED, asked).fetchone() is not None
    except sqlite3.Error:  # locked, or written by an MLflow whose tables are others
        return False


def _parse(fields: dict[str, object]) -> CorpusRecord:
    return CorpusRecord(**fields | {"dataset": Dataset(**fields["dataset"])})  # type: ignore[arg-type]
