"""Prepared corpora in a real sqlite store, recorded by the process that `prepare` starts."""

import json
import logging
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.entities import Run

from tinyllama.config.schema import TrackingConfig
from tinyllama.lineage import CorpusRecord, Dataset, mlflow_corpora, record_corpora
from tinyllama.lineage.mlflow import find_run, open_store
from tinyllama.lineage.mlflow_reading import recorded_runs

pytestmark = pytest.mark.slow

Make = Callable[[str], CorpusRecord]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A record of a version whose fingerprint is a repeated letter."""

    def record(letter: str) -> CorpusRecord:
        manifest = tmp_path / f"{letter}-manifest.json"
        manifest.write_text(json.dumps({"fingerprint": 64 * letter}))
        return CorpusRecord(
            family="llamas",
            name=f"tales@{12 * letter}",
            dataset=Dataset("tales", 64 * letter, "data/tales", 100),
            tags={"corpus": "tales", "tokenizer_digest": "t"},
            params={"files": "raw/*.jsonl", "seq_len": 32},
            metrics={"tokens": 3200.0, "skipped/empty": 2.0},
            artifacts=(str(manifest),),
        )

    return record


@pytest.fixture
def runs_folder(empty_store: Path, tmp_path: Path) -> Path:
    """The folder of all runs, whose store is there and empty."""
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_store, tmp_path / "runs" / "mlflow.db")
    return tmp_path / "runs"


def recorded(runs_folder: Path) -> list[Run]:
    client = open_store(f"sqlite:///{runs_folder}/mlflow.db")
    experiment = client.get_experiment_by_name("llamas")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], order_by=["start_time ASC"]))


def test_each_version_is_one_run_however_often_it_is_prepared(runs_folder, make, monkeypatch):
    config = TrackingConfig(name="mlflow")
    record_corpora(config, runs_folder, [make("a"), make("b")])
    first, second = recorded(runs_folder)
    assert (first.info.run_name, first.info.status) == ("tales@aaaaaaaaaaaa", "FINISHED")
    wanted = {"kind": "corpus", "corpus": "tales", "fingerprint": 64 * "a", "tokenizer_digest": "t"}
    assert wanted.items() <= first.data.tags.items()
    assert first.data.params == {"files": "raw/*.jsonl", "seq_len": "32"}
    assert first.data.metrics == {"tokens": 3200.0, "skipped/empty": 2.0}
    (dataset,) = first.inputs.dataset_inputs
    assert dataset.dataset.name == "tales"
    assert {tag.key: tag.value for tag in dataset.tags}["fingerprint"] == 64 * "a"
    artifact = Path(first.info.artifact_uri.removeprefix("file://")) / "a-manifest.json"
    assert json.loads(artifact.read_text()) == {"fingerprint": 64 * "a"}
    assert second.data.tags["fingerprint"] == 64 * "b"

    started = []
    monkeypatch.setattr(mlflow_corpora.subprocess, "run", lambda *command, **_: started.append(command))
    record_corpora(config, runs_folder, [make("a"), make("b")])
    assert not started, "what is recorded is known without MLflow's import"


def test_a_record_that_was_interrupted_is_filled_up(runs_folder, make):
    client = open_store(f"sqlite:///{runs_folder}/mlflow.db")
    experiment = client.create_experiment("llamas", artifact_location=(runs_folder / "mlartifacts" / "llamas").as_uri())
    begun = client.create_run(experiment, tags={"kind": "corpus", "fingerprint": 64 * "a"})
    client.log_param(begun.info.run_id, "seq_len", 32)
    record_corpora(TrackingConfig(name="mlflow"), runs_folder, [make("a")])
    (run,) = recorded(runs_folder)
    assert (run.info.run_id, run.info.status) == (begun.info.run_id, "FINISHED")
    assert run.data.metrics["tokens"] == 3200.0
    # Who looks for the run of a stage does not meet a corpus.
    assert find_run(client, experiment, 64 * "a") is None
    assert recorded_runs(f"sqlite:///{runs_folder}/mlflow.db", "llamas", 64 * "a") == []


def test_a_store_that_is_down_costs_a_warning_and_nothing_else(tmp_path, make, caplog):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    config = TrackingConfig(name="mlflow", uri=f"http://127.0.0.1:{port}")
    with caplog.at_level(logging.WARNING):
        record_corpora(config, tmp_path / "runs", [make("a")])
    (warning,) = caplog.messages
    assert warning.startswith("tracking failed: ") and "tales@aaaaaaaaaaaa will be recorded when" in warning


def test_a_store_that_hears_and_says_nothing_is_left_after_a_while(tmp_path, make, caplog, monkeypatch):
    monkeypatch.setattr(mlflow_corpora, "PATIENCE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = TrackingConfig(name="mlflow", uri=f"http://127.0.0.1:{listener.getsockname()[1]}")
        record_corpora(config, tmp_path / "runs", [make("a")])
    assert "tracking has not answered within 0 seconds" in caplog.text


def test_without_tracking_no_process_is_started(tmp_path, make, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    record_corpora(TrackingConfig(name="none"), tmp_path / "runs", [make("a")])
    assert not (tmp_path / "runs").exists()
