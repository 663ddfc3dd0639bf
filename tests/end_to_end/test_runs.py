"""Single runs: on any number of processes, interrupted, resumed, damaged."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.forked import Forked

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
LONGER = ["stage=basic", "stage.tokens=80K", "schedule.horizon_tokens=80K", "trace=true", "tracking=none"]


def only_run(runs: Path) -> Path:
    (folder,) = (runs / "demo").iterdir()
    return folder


def final_weights(runs: Path) -> dict:
    newest = max((only_run(runs) / "checkpoints").iterdir())
    return load_file(newest / "weights.safetensors")


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def wait_for_steps(process: Forked, runs: Path, steps: int) -> None:
    """Until the run has recorded so many steps."""
    while process.poll() is None:
        found = list(runs.glob("demo/*/metrics.jsonl"))
        if found and found[0].read_text().count("\n") >= steps:
            return
        time.sleep(0.05)
    raise AssertionError(f"ended before step {steps}: {process.communicate()[1]}")


@pytest.fixture(scope="session")
def unbroken(settings, shell, tmp_path_factory):
    """A run of 78 steps that nothing disturbed."""
    runs = tmp_path_factory.mktemp("unbroken") / "runs"
    result = shell("train", *settings, f"paths.runs={runs}", *LONGER)
    assert result.code == 0, result.err
    return runs


@pytest.mark.parametrize(
    "placement",
    [
        ["cluster.processes=2", "cluster.workers=1", "cluster.zero_stage=3", "cluster.shard_within_node=true"],
        ["cluster.processes=4", "cluster.zero_stage=2"],
        ["cluster.micro_batch=2", "cluster.workers=2"],
    ],
    ids=" ".join,
)
def test_the_samples_are_the_same_on_any_processes_micro_batch_workers_and_zero_stage(
    unbroken, small, shell, tmp_path, placement
):
    result = shell("train", *small, *LONGER, *placement)
    assert result.code == 0, result.err
    here, there = only_run(tmp_path / "runs"), only_run(unbroken)
    assert here.name == there.name
    assert (here / "samples.jsonl").read_bytes() == (there / "samples.jsonl").read_bytes()
    assert losses(here) == pytest.approx(losses(there), abs=2e-3)


def test_torchrun_may_start_the_ranks(unbroken, small, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tinyllama.train"]
    done = subprocess.run(
        [sys.executable, *torchrun, *small, *LONGER],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    here, there = only_run(tmp_path / "runs"), only_run(unbroken)
    assert (here / "samples.jsonl").read_bytes() == (there / "samples.jsonl").read_bytes()
    assert losses(here) == pytest.approx(losses(there), abs=2e-3)


def test_a_signal_stops_in_good_order_and_the_same_command_goes_on_bit_for_bit(unbroken, small, tmp_path, begin, shell):
    process = begin("train", *small, *LONGER)
    wait_for_steps(process, tmp_path / "runs", 20)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "goes on from there" in err
    result = shell("train", *small, *LONGER)
    assert result.code == 0, result.err
    assert "goes on after step" in result.err
    here = only_run(tmp_path / "runs")
    assert (here / "samples.jsonl").read_bytes() == (only_run(unbroken) / "samples.jsonl").read_bytes()
    steps = [json.loads(line)["step"] for line in (here / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 79))
    ours, theirs = final_weights(tmp_path / "runs"), final_weights(unbroken)
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_a_killed_run_goes_on_from_its_last_checkpoint_without_a_repeated_or_missing_step(
    unbroken, small, tmp_path, begin, shell
):
    process = begin("train", *small, *LONGER)
    wait_for_steps(process, tmp_path / "runs", 15)
    process.kill()
    process.communicate()
    result = shell("train", *small, *LONGER)
    assert result.code == 0, result.err
    here = only_run(tmp_path / "runs")
    assert (here / "samples.jsonl").read_bytes() == (only_run(unbroken) / "samples.jsonl").read_bytes()
    ours, theirs = final_weights(tmp_path / "runs"), final_weights(unbroken)
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_a_run_that_is_done_says_so_and_leaves(unbroken, settings, run):
    result = run("train", *settings, f"paths.runs={unbroken}", *LONGER)
    assert result.code == 0
    assert "is done" in result.err


def test_only_the_last_checkpoints_and_the_milestones_stay(small, shell, tmp_path):
    result = shell("train", *small, *LONGER, "checkpoint.milestones=[10K]", "checkpoint.every_tokens=10K")
    assert result.code == 0, result.err
    kept = sorted(int(path.name) for path in (only_run(tmp_path / "runs") / "checkpoints").iterdir())
    assert kept == [10240, 60416, 70656, 79872]


@pytest.fixture
def half(small, tmp_path, begin):
    """A run that was killed after two checkpoints."""
    process = begin("train", *small, *LONGER)
    wait_for_steps(process, tmp_path / "runs", 15)
    folder = only_run(tmp_path / "runs")
    while len(list(folder.glob("checkpoints/0*"))) < 2:  # the second may still be on its way to the disk
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    for leftover in folder.glob("checkpoints/.*"):
        shutil.rmtree(leftover)
    return folder


def test_a_damaged_checkpoint_is_passed_over_with_a_word_and_without_a_good_one_the_run_refuses(half, small, shell):
    older, newer = sorted((half / "checkpoints").glob("0*"))[-2:]
    _flip(newer / "weights.safetensors")
    result = shell("train", *small, *LONGER)
    assert result.code == 0
    assert "weights.safetensors is damaged" in result.err
    (half / "DONE").unlink()
    for checkpoint in (half / "checkpoints").iterdir():
        _flip(checkpoint / "exp_avg.safetensors")
    result = shell("train", *small, *LONGER)
    assert result.code == 3
    assert "none of the" in result.err and "Traceback" not in result.err


def test_a_run_that_is_being_trained_is_not_trained_twice(small, tmp_path, begin, shell):
    endless = [*small, "stage=basic", "stage.tokens=10M", "schedule.horizon_tokens=10M", "tracking=none"]
    process = begin("train", *endless)
    wait_for_steps(process, tmp_path / "runs", 2)
    second = shell("train", *endless)
    process.kill()
    process.communicate()
    assert second.code == 2
    assert "is being trained by another process" in second.err


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
