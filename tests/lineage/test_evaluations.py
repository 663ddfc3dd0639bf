import io
import json
from pathlib import Path

import pytest

from tinyllama.lineage.delivery import Delivery, Voice
from tinyllama.lineage.evaluations import read_evaluations
from tinyllama.lineage.mlflow import MlflowRecorder, find_run, open_store
from tinyllama.lineage.mlflow_store import MlflowStore
from tinyllama.lineage.outbox import Letter, Outbox


def write(folder: Path, step: int, value: float, time: float = 2.5) -> None:
    folder.mkdir(exist_ok=True)
    losses = {"loss": 2.0, "perplexity": 7.4, "bits_per_byte": 1.1}
    document = {"step": step, "time": time, "tasks": {"piqa": {"value": value}}, "suites": {"commonsense": 50.0}}
    (folder / f"{64 * step:015d}.json").write_text(json.dumps(document | {"perplexity": {"skypile": losses}}))


def test_each_checkpoint_is_a_measurement_and_what_cannot_be_read_is_passed_over(tmp_path: Path):
    write(tmp_path, 9, 60.0)
    write(tmp_path, 10, 61.0)
    (tmp_path / "000000000000011.json").write_text("{")
    found = read_evaluations(tmp_path)
    assert [(each.step, each.milliseconds) for each in found] == [(9, 2500), (10, 2500)]
    assert found[1].values == {
        "evaluation/piqa": 61.0,
        "evaluation/commonsense": 50.0,
        "perplexity/skypile": 7.4,
        "bits_per_byte/skypile": 1.1,
    }


@pytest.mark.slow
def test_what_is_measured_after_a_run_has_ended_reaches_its_run_once(
    store: str, tmp_path: Path, make_record, write_steps
):
    record = make_record("basic", "a")
    write_steps(record, range(1, 11))
    record.done.write_text("{}")
    write(record.evaluations, 10, 60.0)
    # At the end of its training, by the same functions as in the recorder's process.
    outbox = Outbox(record.outbox)
    outbox.put(Letter(store, record, status="FINISHED"))
    recorder = MlflowRecorder(store, tmp_path / "mlartifacts")
    assert Delivery(recorder, outbox, store, Voice(io.StringIO())).attempt(ended=True) is None
    outbox.release()
    write(record.evaluations, 5, 55.0)
    write(record.evaluations, 10, 60.0, time=9.5)  # asked again, with the same answers
    MlflowStore(store, tmp_path).record_evaluations([record])
    client = open_store(store)
    run = find_run(client, client.get_experiment_by_name("llamas").experiment_id, record.digest)
    assert run is not None and run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "evaluation/piqa")
    assert sorted((point.step, point.value) for point in history) == [(5, 55.0), (10, 60.0)]
    assert len(client.list_artifacts(run.info.run_id, "evaluations")) == 2
    assert not list(record.outbox.glob("*.json"))
