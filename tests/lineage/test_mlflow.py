"""The recorder against a real sqlite store; the last tests go through its process, as training does."""

import logging
import math
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run

from tinyllama.config.schema import TrackingConfig
from tinyllama.lineage import Dataset, RunRecord, Status, build_tracker
from tinyllama.lineage.mlflow import MlflowRecorder, find_run, open_store
from tinyllama.lineage.record import Measurement

pytestmark = pytest.mark.slow

MakeRecord = Callable[..., RunRecord]


def recorded(
    store: str, record: RunRecord, steps: range = range(0), status: Status = "FINISHED", begin_milliseconds: int = 0
) -> Run:
    """The run as it stands in the store after one life of it, of a second per step."""
    recorder = MlflowRecorder(store, Path(store.removeprefix("sqlite:///")).parent / "mlartifacts")
    recorder.start(record)
    recorder.metrics(
        [
            Measurement(step, begin_milliseconds + 1_000 * step, {"loss": 1 / step, "tokens": 64.0 * step})
            for step in steps
        ]
    )
    recorder.finish(status)
    return run_of(store, record.digest)


def run_of(store: str, digest: str) -> Run:
    client = open_store(store)
    experiment = client.get_experiment_by_name("llamas")
    assert experiment is not None
    run = find_run(client, experiment.experiment_id, digest)
    assert run is not None
    return run


def test_the_tree_can_be_walked_from_each_leaf_to_the_root(store: str, make_record: MakeRecord) -> None:
    variants = ("standard", "math_code", "chinese")
    recorded(store, make_record("basic", "a", variants=variants))
    for letter, variant in zip("bcd", variants, strict=True):
        recorded(store, make_record("continual", letter, "a", variants=(variant,)))
        recorded(store, make_record("cooldown", letter.upper(), letter, variants=(variant,)))
    client = open_store(store)
    for letter, variant in zip("BCD", variants, strict=True):
        run, way = run_of(store, 64 * letter), []
        while True:
            way.append((run.data.tags["stage"], run.data.tags["variants"]))
            if "parent_run_id" not in run.data.tags:
                break
            parent = client.get_run(run.data.tags["parent_run_id"])
            assert run.data.tags["parent_digest"] == parent.data.tags["digest"]
            assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
            run = parent
        assert way == [("cooldown", variant), ("continual", variant), ("basic", "standard,math_code,chinese")]
    assert run.info.run_name == "basic-aaaaaaaaaaaa"
    assert run.data.tags["git_commit"] == "0123abc"


def test_a_resumed_stage_goes_on_in_its_run_and_has_each_step_once(store: str, make_record: MakeRecord) -> None:
    record = make_record("basic", "a")
    interrupted = recorded(store, record, range(1, 31), "KILLED")
    resumed = recorded(store, record, range(21, 41), begin_milliseconds=3_600_000)
    assert interrupted.info.status == "KILLED"
    assert resumed.info.status == "FINISHED"
    assert resumed.info.run_id == interrupted.info.run_id
    history = open_store(store).get_metric_history(resumed.info.run_id, "tokens")
    assert [(metric.step, metric.value) for metric in history] == [(step, 64.0 * step) for step in range(1, 41)]


def test_a_resumed_stage_is_shown_as_running(store: str, make_record: MakeRecord, tmp_path: Path) -> None:
    record = make_record("basic", "a")
    recorded(store, record, status="FAILED")
    MlflowRecorder(store, tmp_path).start(record)
    assert run_of(store, record.digest).info.status == "RUNNING"


def test_every_measurement_arrives_whatever_the_size_of_a_call(store: str, make_record: MakeRecord) -> None:
    run = recorded(store, make_record("basic", "a"), range(1, 1301))
    history = open_store(store).get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.timestamp, metric.value) for metric in history] == [
        (step, 1_000 * step, 1 / step) for step in range(1, 1301)
    ]


def test_a_loss_that_is_no_number_is_recorded_as_such(store: str, make_record: MakeRecord, tmp_path: Path) -> None:
    record = make_record("basic", "a")
    recorder = MlflowRecorder(store, tmp_path)
    recorder.start(record)
    recorder.metrics([Measurement(1, 0, {"loss": math.nan})])
    assert math.isnan(run_of(store, record.digest).data.metrics["loss"])


def test_datasets_are_inputs_with_their_fingerprints(store: str, make_record: MakeRecord) -> None:
    record = make_record(
        "basic", "a", datasets=(Dataset("a", "0123", "data/a", 7), Dataset("b", 64 * "9", "data/b", 8))
    )
    recorded(store, record, status="KILLED")
    found: Any = recorded(store, record).inputs
    inputs = {entry.dataset.name: entry for entry in found.dataset_inputs}
    assert len(inputs) == len(found.dataset_inputs) == 2
    assert inputs["a"].dataset.digest == "0123"
    assert inputs["b"].dataset.digest == 36 * "9"
    assert {tag.key: tag.value for tag in inputs["b"].tags}["fingerprint"] == 64 * "9"
    assert '"samples": 8' in inputs["b"].dataset.profile


def test_the_whole_meaning_becomes_params(store: str, make_record: MakeRecord) -> None:
    params = {f"corpora.c{number}.tokens": number for number in range(250)} | {"files": 9_000 * "x"}
    run = recorded(store, make_record("basic", "a", params=params))
    assert run.data.params == {name: str(value)[:6000] for name, value in params.items()}


def test_each_finished_stage_is_one_version_of_the_familys_model(store: str, make_record: MakeRecord) -> None:
    basic, continual = make_record("basic", "a"), make_record("continual", "b", "a")
    recorded(store, basic, status="KILLED")
    assert open_store(store).search_model_versions("name = 'llamas'") == []
    for record in (basic, continual, basic):
        recorded(store, record)
    found = open_store(store).search_model_versions("name = 'llamas'")
    versions = {version.tags["stage"]: version for version in found}
    assert len(found) == 2
    assert {stage: int(version.version) for stage, version in versions.items()} == {"basic": 1, "continual": 2}
    assert versions["continual"].tags["digest"] == continual.digest
    assert versions["continual"].tags["parent_digest"] == basic.digest
    assert versions["continual"].source == str(continual.directory)
    assert versions["continual"].run_id == run_of(store, continual.digest).info.run_id


def test_files_and_folders_are_kept_beside_the_store(store: str, make_record: MakeRecord, tmp_path: Path) -> None:
    record = make_record("basic", "a")
    recorder = MlflowRecorder(store, tmp_path / "mlartifacts")
    recorder.start(record)
    (tmp_path / "plots").mkdir()
    for name in ("plan.json", "plots/loss.svg"):
        (tmp_path / name).write_text(name)
    recorder.artifact(tmp_path / "plan.json")
    recorder.artifact(tmp_path / "plots")
    kept = tmp_path / "mlartifacts" / "llamas" / run_of(store, record.digest).info.run_id / "artifacts"
    assert sorted(str(path.relative_to(kept)) for path in kept.rglob("*.*")) == ["plan.json", "plots/loss.svg"]


def test_an_interrupted_creation_of_the_store_is_made_good(empty_store: Path, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db.new").write_bytes(empty_store.read_bytes()[:4096])
    open_store(f"sqlite:///{tmp_path / 'mlflow.db'}").search_experiments()
    assert not (tmp_path / "mlflow.db.new").exists()


# ---------------------------------------------------------------- through the recorder's process


def test_two_runs_may_start_at_once_on_a_store_that_is_not_there_yet(
    tmp_path: Path, make_record: MakeRecord, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    trackers = [build_tracker(TrackingConfig(name="mlflow"), tmp_path) for _ in "ab"]
    plan = tmp_path / "plan.json"
    plan.write_text("{}")
    for tracker, letter in zip(trackers, "ab", strict=True):
        tracker.start(make_record("basic", letter))
        for step in range(1, 101):
            tracker.metrics(step, {"loss": 1 / step, "tokens": 64 * step})
        tracker.artifacts([plan, tmp_path / "missing.json"])
    for tracker in trackers:
        tracker.finish("FINISHED")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for letter in "ab":
        run = run_of(store, 64 * letter)
        assert run.info.status == "FINISHED"
        assert len(open_store(store).get_metric_history(run.info.run_id, "loss")) == 100
        assert (tmp_path / "mlartifacts" / "llamas" / run.info.run_id / "artifacts" / "plan.json").exists()
    assert capfd.readouterr() == ("", "")
    assert ["missing.json" in line for line in caplog.messages] == [True, True]


def test_a_store_out_of_reach_costs_one_warning(
    tmp_path: Path, make_record: MakeRecord, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("where a folder should be")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    nobody = build_tracker(TrackingConfig(name="mlflow", uri=f"http://127.0.0.1:{port}"), tmp_path)
    unwritable = build_tracker(TrackingConfig(name="mlflow"), tmp_path / "file")
    for tracker in (nobody, unwritable):
        tracker.start(make_record("basic", "a"))
        tracker.metrics(1, {"loss": 1.0})
    for tracker, reason in ((nobody, str(port)), (unwritable, "File exists")):
        tracker.finish("FINISHED")
        with caplog.at_level(logging.WARNING):
            assert sum(reason in line for line in caplog.messages) == 1
    assert len(caplog.records) == 2
