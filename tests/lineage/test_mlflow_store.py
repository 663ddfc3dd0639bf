"""What may be asked of MLflow, against real stores that its recorder has filled."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tinyllama.config.schema import TrackingConfig
from tinyllama.lineage import Dataset, RunRecord, Status, disagreements, measured_throughput
from tinyllama.lineage.mlflow import MlflowRecorder, find_run, finished_rates, open_store
from tinyllama.lineage.outbox import Letter, Outbox
from tinyllama.lineage.record import Measurement

pytestmark = pytest.mark.slow

MakeRecord = Callable[..., RunRecord]
Fill = Callable[..., None]
MLFLOW = TrackingConfig(name="mlflow")
MODEL = 64 * "e"


@pytest.fixture
def fill(store: str, tmp_path: Path) -> Fill:
    """fill(record) records a life of 20 steps in the folder's own store."""

    def fill(record: RunRecord, status: Status = "FINISHED", rate: float | None = None, steps: int = 20) -> None:
        recorder = MlflowRecorder(store, tmp_path / "mlartifacts")
        recorder.start(record, None)
        every = record.every_steps
        recorder.metrics([Measurement(step, step, {"tokens": 64.0 * step}) for step in range(every, steps + 1, every)])
        recorder.finish(status, None, rate)

    return fill


# ---------------------------------------------------------------- throughput


def test_rates_are_those_of_finished_runs_of_the_model_on_the_cluster(
    store: str, fill: Fill, make_record: MakeRecord, tmp_path: Path
) -> None:
    fill(make_record("basic", "a", ranks=2), rate=200.0)
    fill(make_record("basic", "b", ranks=4, family="others"), rate=1200.0)
    fill(make_record("basic", "c"), status="KILLED", rate=7.0)
    fill(make_record("basic", "d", model_digest=64 * "0"), rate=7.0)
    fill(make_record("basic", "1", cluster="h100_x8"), rate=7.0)
    fill(make_record("basic", "2"), rate=None)
    assert measured_throughput(MLFLOW, tmp_path, MODEL, "local") == [100.0, 300.0]
    assert finished_rates(store, MODEL, "local") == [100.0, 300.0]
    client = open_store(store)
    experiment = client.get_experiment_by_name("others")
    assert experiment is not None
    run = find_run(client, experiment.experiment_id, 64 * "b")
    assert run is not None
    client.delete_run(run.info.run_id)
    assert measured_throughput(MLFLOW, tmp_path, MODEL, "local") == [100.0]


def test_a_plan_neither_makes_a_store_nor_imports_mlflow_to_ask_one(
    fill: Fill, make_record: MakeRecord, loaded_by: Callable[..., list[str]], tmp_path: Path
) -> None:
    fill(make_record("basic", "a", ranks=1), rate=50.0)
    statement = f"""
from pathlib import Path
from tinyllama.config.schema import TrackingConfig
from tinyllama.lineage.tracking import measured_throughput
found = [
    measured_throughput(TrackingConfig(name="mlflow"), Path(runs), {MODEL!r}, "local")
    for runs in ({str(tmp_path)!r}, {str(tmp_path / "runs")!r})
]
assert found == [[50.0], []], found
"""
    assert loaded_by(statement, "mlflow", "torch", "sqlalchemy") == []
    assert not (tmp_path / "runs" / "mlflow.db").exists()


def test_a_file_that_is_no_store_of_mlflow_has_no_rates(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("what is this")
    assert measured_throughput(MLFLOW, tmp_path, MODEL, "local") == []


@pytest.fixture
def mute() -> Iterator[str]:
    """The URI of a server that hears and says nothing; it takes a connection for itself so that none is refused."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = []

        def accept() -> None:
            with suppress(OSError):
                while True:
                    taken.append(listener.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    for connection in taken:
        connection.close()


def test_a_server_that_does_not_answer_has_no_rates(mute: str, tmp_path: Path) -> None:
    assert measured_throughput(TrackingConfig(name="mlflow", uri=mute), tmp_path, MODEL, "local") == []


def test_who_keeps_nothing_has_no_rates_and_no_opinion(make_record: MakeRecord, tmp_path: Path) -> None:
    nothing = TrackingConfig(name="none")
    assert measured_throughput(nothing, tmp_path, MODEL, "local") == []
    assert disagreements(nothing, tmp_path, make_record("basic", "a"), True, 20) is None


# ---------------------------------------------------------------- disagreements


@pytest.fixture
def child(fill: Fill, make_record: MakeRecord) -> RunRecord:
    """A finished run of 20 steps that MLflow knows, with its parent."""
    record = make_record("continual", "b", "a")
    fill(make_record("basic", "a"))
    fill(record)
    return record


def test_a_run_that_is_recorded_well_has_no_disagreements(child: RunRecord, tmp_path: Path) -> None:
    assert disagreements(MLFLOW, tmp_path, child, True, 20) == []


def test_an_interrupted_run_may_stand_as_it_is(fill: Fill, make_record: MakeRecord, tmp_path: Path) -> None:
    record = make_record("basic", "a", every_steps=10)
    fill(record, status="KILLED")
    assert disagreements(MLFLOW, tmp_path, record, False, 25) == []
    assert disagreements(MLFLOW, tmp_path, record, False, 15) == []
    assert disagreements(MLFLOW, tmp_path, record, False, 30) == ["last recorded step: 30 here, 20 there"]


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"digest": 64 * "9"}, "runs of digest 999999999999: 1 here, 0 there"),
        (
            {"params": {"model.num_layers": 5, "optimizer.learning_rate": 4e-4}},
            "param model.num_layers: 5 here, 4 there",
        ),
        ({"params": {"model.num_layers": 4}}, "param optimizer.learning_rate: nothing here, 0.0004 there"),
        ({"stage": "cooldown"}, "tag stage: cooldown here, continual there"),
        (
            {"datasets": (Dataset("slimpajama", 64 * "0", "", 1),)},
            f"fingerprint of dataset slimpajama: {64 * '0'} here, {64 * 'f'} there",
        ),
        ({"datasets": ()}, f"fingerprint of dataset slimpajama: nothing here, {64 * 'f'} there"),
    ],
    ids=["digest", "value", "param", "stage", "fingerprint", "dataset"],
)
def test_each_difference_is_a_sentence_with_both_sides(
    changes: dict[str, object], sentence: str, child: RunRecord, tmp_path: Path
) -> None:
    changed = replace(child, **changes)  # type: ignore[arg-type]
    assert disagreements(MLFLOW, tmp_path, changed, True, 20) == [sentence]


def test_another_parent_is_seen_in_its_tag_its_run_and_its_version(
    child: RunRecord, fill: Fill, make_record: MakeRecord, tmp_path: Path
) -> None:
    fill(make_record("basic", "c"))
    changed = replace(child, parent_digest=64 * "c")
    found = disagreements(MLFLOW, tmp_path, changed, True, 20)
    assert found is not None
    assert found[0] == f"tag parent_digest: {64 * 'c'} here, {64 * 'a'} there"
    fields = [sentence.split(":")[0] for sentence in found[1:]]
    assert fields == ["tag parent_run_id", "tag mlflow.parentRunId", "tag parent_version of model version 2"]
    assert found[-1].endswith(": 3 here, 1 there")


def test_what_is_changed_in_mlflow_is_found(child: RunRecord, store: str, tmp_path: Path) -> None:
    client = open_store(store)
    experiment = client.get_experiment_by_name("llamas")
    assert experiment is not None
    run = find_run(client, experiment.experiment_id, child.digest)
    assert run is not None
    client.set_terminated(run.info.run_id, "KILLED")
    client.set_model_version_tag("llamas", "2", "parent_version", "7")
    client.delete_model_version_tag("llamas", "2", "digest")
    assert disagreements(MLFLOW, tmp_path, child, True, 20) == [
        "status: FINISHED here, KILLED there",
        f"tag digest of model version 2: {child.digest} here, nothing there",
        "tag parent_version of model version 2: 1 here, 7 there",
    ]
    client.delete_model_version("llamas", "2")
    found = disagreements(MLFLOW, tmp_path, child, True, 20)
    assert found is not None
    assert found[-1] == "model versions of the run: 1 here, 0 there"
    client.create_run(experiment.experiment_id, tags={"digest": child.digest})
    assert disagreements(MLFLOW, tmp_path, child, True, 20) == ["runs of digest bbbbbbbbbbbb: 1 here, 2 there"]


@pytest.mark.parametrize("last_step", [19, 21])
def test_missing_and_surplus_steps_of_a_finished_run_are_found(
    child: RunRecord, tmp_path: Path, last_step: int
) -> None:
    found = disagreements(MLFLOW, tmp_path, child, True, last_step)
    assert found == [f"last recorded step: {last_step} here, 20 there"]


def test_a_store_that_is_not_there_or_does_not_answer_is_named(
    child: RunRecord, mute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    (missing,) = disagreements(MLFLOW, tmp_path / "elsewhere", child, True, 20) or []
    assert str(tmp_path / "elsewhere" / "mlflow.db") in missing
    (silent,) = disagreements(TrackingConfig(name="mlflow", uri=mute), tmp_path, child, True, 20) or []
    assert silent.startswith(f"{mute} cannot be asked")


def test_what_has_not_been_delivered_yet_is_no_riddle(child: RunRecord, tmp_path: Path) -> None:
    Outbox(child.outbox).put(Letter(None, child, status="FINISHED"))
    (sentence,) = disagreements(MLFLOW, tmp_path, child, True, 20) or []
    assert "not everything has been delivered" in sentence
