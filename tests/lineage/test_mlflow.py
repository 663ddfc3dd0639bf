"""The recorder against a real sqlite store; the last tests go through its process, as training does."""

import logging
import math
import shutil
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from tinyllama.config.schema import TrackingConfig
from tinyllama.lineage import Dataset, RunRecord, Status, build_tracker, deliver_pending
from tinyllama.lineage.mlflow import MlflowRecorder, find_run, open_store
from tinyllama.lineage.outbox import Letter, Outbox
from tinyllama.lineage.record import Measurement

pytestmark = pytest.mark.slow

MakeRecord = Callable[..., RunRecord]


def recorded(
    store: str,
    record: RunRecord,
    steps: Iterable[int] = (),
    status: Status = "FINISHED",
    begin_milliseconds: int = 0,
    rate: float | None = None,
) -> Run:
    """The run as it stands in the store after one life of it, of a second per step."""
    recorder = MlflowRecorder(store, Path(store.removeprefix("sqlite:///")).parent / "mlartifacts")
    recorder.start(record, None)
    recorder.metrics(
        [
            Measurement(step, begin_milliseconds + 1_000 * step, {"loss": 1 / step, "tokens": 64.0 * step})
            for step in steps
        ]
    )
    recorder.finish(status, None, rate)
    return run_of(store, record.digest)


def run_of(store: str, digest: str) -> Run:
    client = open_store(store)
    experiment = client.get_experiment_by_name("llamas")
    assert experiment is not None
    run = find_run(client, experiment.experiment_id, digest)
    assert run is not None
    return run


def version_of(store: str, run: Run) -> ModelVersion:
    (version,) = open_store(store).search_model_versions(f"name = 'llamas' and run_id = '{run.info.run_id}'")
    return version


def steps_of(store: str, run: Run, name: str = "tokens") -> list[int]:
    return [metric.step for metric in open_store(store).get_metric_history(run.info.run_id, name)]


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
    MlflowRecorder(store, tmp_path).start(record, None)
    assert run_of(store, record.digest).info.status == "RUNNING"


def test_every_measurement_arrives_whatever_the_size_of_a_call(store: str, make_record: MakeRecord) -> None:
    run = recorded(store, make_record("basic", "a"), range(1, 1301))
    history = open_store(store).get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.timestamp, metric.value) for metric in history] == [
        (step, 1_000 * step, 1 / step) for step in range(1, 1301)
    ]


def test_whatever_steps_are_missing_are_filled_in_and_the_others_stay(store: str, make_record: MakeRecord) -> None:
    record = make_record("basic", "a")
    recorded(store, record, [1, 2, 3, 7, 8], "KILLED")
    run = recorded(store, record, range(1, 13), begin_milliseconds=3_600_000)
    history = open_store(store).get_metric_history(run.info.run_id, "loss")
    found = {metric.step: (metric.timestamp, metric.value) for metric in history}
    assert len(history) == len(found) == 12
    assert found == {
        step: (1_000 * step + (0 if step in (1, 2, 3, 7, 8) else 3_600_000), 1 / step) for step in range(1, 13)
    }


def test_a_step_is_sent_whole_or_not_at_all(store: str, make_record: MakeRecord, tmp_path: Path) -> None:
    record = make_record("basic", "a")
    recorder = MlflowRecorder(store, tmp_path)
    recorder.start(record, None)
    groups = []
    recorder._client.log_batch = lambda run, metrics: groups.append(metrics)  # type: ignore[method-assign]
    names = [f"corpus_losses/{number}" for number in range(300)]
    recorder.metrics([Measurement(step, 0, dict.fromkeys(names, 1.0) | {"tokens": 64.0}) for step in range(1, 11)])
    steps = [{point.step for point in group} for group in groups]
    assert [sorted(each) for each in steps] == [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10]]
    assert all(len(group) <= 1000 for group in groups)


def test_a_loss_that_is_no_number_is_recorded_as_such(store: str, make_record: MakeRecord, tmp_path: Path) -> None:
    record = make_record("basic", "a")
    recorder = MlflowRecorder(store, tmp_path)
    recorder.start(record, None)
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


def test_a_version_carries_its_parents_version_and_says_in_words_where_it_comes_from(
    store: str, make_record: MakeRecord
) -> None:
    runs = {
        stage: recorded(store, make_record(stage, letter, parent, variants=("standard", "chinese")))
        for stage, letter, parent in (("basic", "a", None), ("continual", "b", "a"), ("cooldown", "c", "b"))
    }
    versions = {stage: version_of(store, run) for stage, run in runs.items()}
    assert {stage: version.tags.get("parent_version") for stage, version in versions.items()} == {
        "basic": None,
        "continual": "1",
        "cooldown": "2",
    }
    assert versions["cooldown"].tags["variants"] == "standard,chinese"
    experiment = runs["basic"].info.experiment_id
    page = {stage: f"(#/experiments/{experiment}/runs/{run.info.run_id})" for stage, run in runs.items()}
    way = (
        f"From the root: [basic-aaaaaaaaaaaa]{page['basic']} ([version 1](#/models/llamas/versions/1)) → "
        f"[continual-bbbbbbbbbbbb]{page['continual']} ([version 2](#/models/llamas/versions/2)) → "
        f"**cooldown-cccccccccccc**"
    )
    assert str(versions["cooldown"].description).splitlines() == [
        f"Stage **cooldown** of standard, chinese, continued from [continual-bbbbbbbbbbbb]{page['continual']} "
        f"([version 2](#/models/llamas/versions/2)). Trained by [cooldown-cccccccccccc]{page['cooldown']}.",
        "",
        way,
    ]
    note = run_of(store, 64 * "c").data.tags["mlflow.note.content"]
    assert note.splitlines()[0] == way
    assert "[version 3](#/models/llamas/versions/3)" in note
    assert "from the start" in str(versions["basic"].description)


def test_a_tree_that_arrives_from_its_leaves_is_as_one_that_arrives_from_its_root(
    store: str, make_record: MakeRecord
) -> None:
    family = [make_record("basic", "a"), make_record("continual", "b", "a"), make_record("cooldown", "c", "b")]
    recorded(store, family[2])
    assert "not recorded here yet" in run_of(store, family[2].digest).data.tags["mlflow.note.content"]
    recorded(store, family[0])
    recorded(store, family[1])
    leaf, stem, root = (run_of(store, record.digest) for record in reversed(family))
    for child, parent in ((leaf, stem), (stem, root)):
        for name in ("parent_run_id", "mlflow.parentRunId"):
            assert child.data.tags[name] == parent.info.run_id
        assert version_of(store, child).tags["parent_version"] == str(version_of(store, parent).version)
    for words in (leaf.data.tags["mlflow.note.content"], str(version_of(store, leaf).description)):
        assert "not recorded" not in words
        for ancestor in (stem, root):
            assert f"/runs/{ancestor.info.run_id})" in words
            assert f"(#/models/llamas/versions/{version_of(store, ancestor).version})" in words


def test_tags_tell_the_hardware_and_whether_a_run_is_a_branch_or_was_adopted(
    store: str, make_record: MakeRecord
) -> None:
    plain = recorded(store, make_record("basic", "a")).data.tags
    assert {name: plain[name] for name in ("cluster", "ranks", "zero_stage", "model_digest")} == {
        "cluster": "local",
        "ranks": "2",
        "zero_stage": "1",
        "model_digest": 64 * "e",
    }
    assert {"gpu", "branch", "adopted_from"}.isdisjoint(plain)
    record = make_record("basic", "b", cluster="h100_x8", gpu="H100", ranks=8, branch=True, adopted_from="/old/000")
    special = recorded(store, record).data.tags
    assert (special["gpu"], special["ranks"]) == ("H100", "8")
    assert (special["branch"], special["adopted_from"]) == ("true", "/old/000")


def test_the_typical_rate_of_the_last_life_is_kept_per_rank(store: str, make_record: MakeRecord) -> None:
    recorded(store, make_record("basic", "a", ranks=2), range(1, 3), "KILLED", rate=100.0)
    run = recorded(store, make_record("basic", "a", ranks=4), range(3, 5), rate=600.0)
    assert run.data.metrics["tokens_per_second_per_rank"] == 150.0


def test_files_and_folders_are_kept_beside_the_store(store: str, make_record: MakeRecord, tmp_path: Path) -> None:
    record = make_record("basic", "a")
    recorder = MlflowRecorder(store, tmp_path / "mlartifacts")
    recorder.start(record, None)
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
    tmp_path: Path,
    make_record: MakeRecord,
    write_steps: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    trackers = [build_tracker(TrackingConfig(name="mlflow"), tmp_path) for _ in "ab"]
    plan = tmp_path / "plan.json"
    plan.write_text("{}")
    for tracker, letter in zip(trackers, "ab", strict=True):
        record = make_record("basic", letter)
        tracker.start(record)
        write_steps(record, range(1, 101))
        tracker.artifacts([plan])
    for tracker in trackers:
        tracker.finish("FINISHED")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for letter in "ab":
        run = run_of(store, 64 * letter)
        assert run.info.status == "FINISHED"
        assert run.info.end_time == 1_100_000
        assert steps_of(store, run, "loss") == list(range(1, 101))
        assert run.data.metrics["tokens_per_second_per_rank"] == (100 + (6 + 100) / 2) / 2
        assert (tmp_path / "mlartifacts" / "llamas" / run.info.run_id / "artifacts" / "plan.json").exists()
    assert capfd.readouterr() == ("", "")
    assert caplog.messages == []


def test_a_store_out_of_reach_costs_one_warning_and_gets_all_when_it_is_there(
    tmp_path: Path,
    empty_store: Path,
    make_record: MakeRecord,
    write_steps: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("where a folder should be")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    nobody = build_tracker(TrackingConfig(name="mlflow", uri=f"http://127.0.0.1:{port}"), tmp_path)
    unwritable = build_tracker(TrackingConfig(name="mlflow"), tmp_path / "file")
    records = [make_record("basic", letter) for letter in "ab"]
    for tracker, record in zip((nobody, unwritable), records, strict=True):
        tracker.start(record)
        write_steps(record, range(1, 4))
    for tracker, reason in ((nobody, str(port)), (unwritable, "File exists")):
        tracker.finish("FINISHED")
        with caplog.at_level(logging.WARNING):
            assert sum(reason in line for line in caplog.messages) == 1
    assert len(caplog.records) == 2
    (tmp_path / "file").unlink()
    (tmp_path / "file").mkdir()
    shutil.copy(empty_store, tmp_path / "file")
    deliver_pending(TrackingConfig(name="mlflow"), tmp_path / "file", records[1].outbox)
    store = f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}"
    run = run_of(store, records[1].digest)
    assert (run.info.status, steps_of(store, run)) == ("FINISHED", [1, 2, 3])
    assert (run.info.start_time, run.info.end_time) == (1_001_000, 1_003_000)
    assert version_of(store, run).tags["digest"] == records[1].digest
    assert Outbox(records[1].outbox).is_empty()
    assert not Outbox(records[0].outbox).is_empty()  # it was meant for another store


def test_nothing_is_started_when_nothing_is_pending(tmp_path: Path, make_record: MakeRecord) -> None:
    record = make_record("basic", "a")
    Outbox(record.outbox).put(Letter("http://elsewhere", record, status="FINISHED"))
    deliver_pending(TrackingConfig(name="mlflow"), tmp_path, record.outbox)
    assert not (tmp_path / "mlflow.db").exists()
