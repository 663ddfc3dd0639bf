"""cluster.micro_batch=auto through the real command: measured once, remembered, and of no meaning."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import takewhile
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RUN = ["stage=basic", "stage.tokens=24K", "schedule.horizon_tokens=32K", "trace=true", "tracking=none"]
AUTO = "cluster.micro_batch=auto"


def only_run(runs: Path) -> Path:
    (folder,) = (runs / "demo").iterdir()
    return folder


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def answer(runs: Path) -> Path:
    (path,) = (runs / ".micro_batches").iterdir()
    return path


@pytest.fixture(scope="module")
def given(settings, shell, tmp_path_factory):
    """A run whose micro-batch is a number."""
    runs = tmp_path_factory.mktemp("given") / "runs"
    result = shell("train", *settings, f"paths.runs={runs}", *RUN)
    assert result.code == 0, result.err
    return only_run(runs)


@pytest.mark.parametrize("ranks", [1, 2])
def test_it_is_measured_once_and_changes_nothing_that_a_run_means(given, small, shell, tmp_path, ranks):
    runs = tmp_path / "runs"
    placed = [f"cluster.processes={ranks}", AUTO]
    first = shell("train", *small, *RUN, *placed)
    assert first.code == 0, first.err
    told = re.findall(r"^micro-batch (\d+).* \(measured in .*\)$", first.err, re.MULTILINE)
    assert len(told) == 1, first.err
    found = json.loads(answer(runs).read_text())
    assert found["micro_batch"] == int(told[0]) == int(min(found["seconds"], key=found["seconds"].get))
    assert 32 // ranks % found["micro_batch"] == 0

    here = only_run(runs)
    assert here.name == given.name
    assert (here / "samples.jsonl").read_bytes() == (given / "samples.jsonl").read_bytes()
    assert losses(here) == pytest.approx(losses(given), abs=2e-3)
    written = yaml.safe_load((here / "config.yaml").read_text())["cluster"]
    assert (written["micro_batch"], written["micro_batch_is_auto"]) == (found["micro_batch"], True)
    assert json.loads((here / "plan.json").read_text())["micro_batch"]["samples"] == found["micro_batch"]

    second = shell("train", *small, *RUN, *placed, "seed=2", "branch=true")  # of another meaning, on the same place
    assert second.code == 0, second.err
    assert "(measured in" not in second.err and "trying" not in second.err
    assert json.loads(answer(runs).read_text()) == found


def test_what_it_used_leaves_no_trace_in_the_run_that_measured(small, shell, tmp_path):
    """Bit for bit: a run that measured, and one that was given the number that came out."""
    measuring = shell("train", *small, *RUN, AUTO)
    assert measuring.code == 0, measuring.err
    size = json.loads(answer(tmp_path / "runs").read_text())["micro_batch"]
    there = tmp_path / "other"
    result = shell("train", *small, *RUN, f"paths.runs={there}", f"cluster.micro_batch={size}")
    assert result.code == 0, result.err
    ours, theirs = only_run(tmp_path / "runs"), only_run(there)
    assert losses(ours) == losses(theirs)
    (weights, others) = (
        max((run / "checkpoints").iterdir()) / "weights.safetensors" for run in (ours, theirs)
    )  # fmt: skip
    assert weights.read_bytes() == others.read_bytes()


@pytest.mark.parametrize("damage", [b"", b'{"micro_batch": 4}'])
def test_a_damaged_memory_is_told_and_made_anew(small, shell, tmp_path, damage):
    first = shell("train", *small, *RUN, AUTO)
    assert first.code == 0, first.err
    path = answer(tmp_path / "runs")
    path.write_bytes(damage)
    second = shell("train", *small, *RUN, AUTO, "seed=2", "branch=true")
    assert second.code == 0, second.err
    assert f"{path} " in second.err and "micro-batches are measured anew" in second.err
    assert json.loads(answer(tmp_path / "runs").read_text())["micro_batch"] > 0


def test_a_run_that_goes_on_keeps_to_what_was_measured(small, begin, shell, tmp_path):
    longer = [*small, *RUN, "stage.tokens=80K", "schedule.horizon_tokens=80K", AUTO]
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


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_while_it_measures_ends_the_run_in_good_order(small, tmp_path, ranks):
    command = [sys.executable, "-m", "tinyllama.train", *small, *RUN, AUTO, f"cluster.processes={ranks}"]
    slow = ["model.num_layers=60"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([*command, *slow], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as life:
        assert life.stderr is not None
        said = list(takewhile(lambda line: "trying 1, " not in line, life.stderr))
        life.send_signal(signal.SIGTERM)
        _, err = life.communicate(timeout=60)
    assert life.returncode == 75, (said, err)
    assert "stopped before there was anything to save" in err and "Traceback" not in err
    assert not (tmp_path / "runs" / ".micro_batches").exists()
    assert not list((tmp_path / "runs").glob("demo/*/identity.json"))
