"""cluster.micro_batch=auto through the real command: measured once, remembered, and of no meaning."""

import json
import re
import signal
import time
from pathlib import Path

import pytest
import yaml

from tests.end_to_end.conftest import lines, only_run
from tests.shared import copy_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("micro-batch")]

RUN = ["stage=basic", "stage.tokens=8K", "trace=true"]
SHORT = ["stage=basic", "stage.tokens=2K", "branch=true"]
"""Two steps with another meaning, on the same place."""
AUTO = "cluster.micro_batch=auto"


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in lines(folder / "metrics.jsonl")]


def answer(runs: Path) -> Path:
    (path,) = (runs / ".micro_batches").iterdir()
    return path


@pytest.fixture(scope="module", params=[1, 2])
def measured(request, settings, shell, tmp_path_factory):
    """The runs folder of a run that measured, with the cluster's settings and what it printed."""
    runs = tmp_path_factory.mktemp("measured") / "runs"
    placed = [f"cluster.processes={request.param}", AUTO]
    result = shell("train", *settings, f"paths.runs={runs}", *RUN, *placed)
    assert result.code == 0, result.err
    return runs, placed, result.err


def test_it_is_measured_once_and_leaves_no_trace_in_the_run(measured, small, shell, tmp_path):
    """Bit for bit: a run that measured, and one with the number that was found."""
    runs, placed, printed = measured
    told = re.findall(r"^micro-batch (\d+).* \(measured in .*\)$", printed, re.MULTILINE)
    assert len(told) == 1, printed
    found = json.loads(answer(runs).read_text())
    assert found["micro_batch"] == int(told[0]) == int(min(found["seconds"], key=found["seconds"].get))
    ranks = int(placed[0].partition("=")[2])
    assert 32 // ranks % found["micro_batch"] == 0

    result = shell("train", *small, *RUN, placed[0], f"cluster.micro_batch={found['micro_batch']}")
    assert result.code == 0, result.err
    here, given = only_run(runs), only_run(tmp_path / "runs")
    assert here.name == given.name
    assert (here / "samples.jsonl").read_bytes() == (given / "samples.jsonl").read_bytes()
    assert losses(here) == losses(given)
    weights, others = (max((run / "checkpoints").iterdir()) / "weights.safetensors" for run in (here, given))
    assert weights.read_bytes() == others.read_bytes()
    written = yaml.safe_load((here / "config.yaml").read_text())["cluster"]
    assert (written["micro_batch"], written["micro_batch_is_auto"]) == (found["micro_batch"], True)
    assert json.loads((here / "plan.json").read_text())["micro_batch"]["samples"] == found["micro_batch"]


def test_another_run_on_the_same_place_keeps_to_what_was_measured(measured, small, shell, tmp_path):
    runs, placed, _ = measured
    copy_of(runs, tmp_path / "runs")
    before = answer(tmp_path / "runs").read_bytes()
    result = shell("train", *small, *SHORT, *placed)
    assert result.code == 0, result.err
    assert "(measured in" not in result.err and "trying" not in result.err
    assert answer(tmp_path / "runs").read_bytes() == before


@pytest.mark.parametrize("measured", [1], indirect=True)
def test_a_damaged_memory_is_told_and_made_anew(measured, small, shell, tmp_path):
    runs, placed, _ = measured
    copy_of(runs, tmp_path / "runs")
    path = answer(tmp_path / "runs")
    for seed, damage in enumerate([b"", b'{"micro_batch": 4}']):
        path.write_bytes(damage)
        result = shell("train", *small, *SHORT, *placed, f"seed={seed}")
        assert result.code == 0, result.err
        assert f"{path} " in result.err and "micro-batches are measured anew" in result.err
        assert json.loads(path.read_text())["micro_batch"] > 0


def test_a_run_that_goes_on_keeps_to_what_was_measured(small, begin, shell, tmp_path):
    longer = [*small, "stage=basic", "stage.tokens=40K", "schedule.horizon_tokens=40K", AUTO]
    life = begin("train", *longer)
    while not any(path.stat().st_size for path in (tmp_path / "runs").glob("demo/*/metrics.jsonl")):
        assert life.poll() is None, life.communicate()[1]
        time.sleep(0.01)
    life.send_signal(signal.SIGTERM)
    _, err = life.communicate(timeout=60)
    assert life.returncode == 75 and "(measured in" in err, err
    before = answer(tmp_path / "runs").read_bytes()
    result = shell("train", *longer)
    assert result.code == 0 and "goes on after step" in result.err, result.err
    assert "(measured in" not in result.err and answer(tmp_path / "runs").read_bytes() == before


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_a_signal_while_it_measures_ends_the_run_in_good_order(small, tmp_path, begin, ranks):
    life = begin("train", *small, *RUN, AUTO, f"cluster.processes={ranks}", "model.num_layers=60")
    while "trying 1, " not in life.printed():
        assert life.poll() is None, life.communicate()
        time.sleep(0.01)
    life.send_signal(signal.SIGTERM)
    _, err = life.communicate(timeout=60)
    assert life.returncode == 75, err
    assert "stopped before there was anything to save" in err and "Traceback" not in err
    assert not (tmp_path / "runs" / ".micro_batches").exists()
    assert not list((tmp_path / "runs").glob("demo/*/identity.json"))
