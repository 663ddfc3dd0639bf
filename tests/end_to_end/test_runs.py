"""Single runs: on any number of processes, interrupted, resumed, damaged."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.end_to_end.conftest import lines, only_run, run_folder
from tests.end_to_end.faults import flip
from tests.forked import Forked
from tests.shared import copy_of, shared_folder

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
BASIC = ["stage=basic", "trace=true"]
"""As the shared family's basic stage was trained: 16 steps, on two ranks with ZeRO-3."""
LONGER = ["stage=basic", "stage.tokens=40K", "schedule.horizon_tokens=40K", "trace=true"]
"""39 steps."""


def final_weights(runs: Path) -> dict:
    newest = max((only_run(runs) / "checkpoints").iterdir())
    return load_file(newest / "weights.safetensors")


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in lines(folder / "metrics.jsonl")]


def wait_for_steps(process: Forked, runs: Path, steps: int) -> None:
    """Until the run has recorded so many steps."""
    while process.poll() is None:
        found = list(runs.glob("demo/*/metrics.jsonl"))
        if found and found[0].read_text().count("\n") >= steps:
            return
        time.sleep(0.02)
    raise AssertionError(f"ended before step {steps}: {process.communicate()[1]}")


@pytest.fixture(scope="session")
def unbroken(settings, shell, tmp_path_factory):
    """A run of 39 steps that nothing disturbed."""

    def build(runs: Path) -> None:
        result = shell("train", *settings, f"paths.runs={runs}", *LONGER)
        assert result.code == 0, result.err

    return shared_folder(tmp_path_factory, "unbroken", build)


def assert_like_the_family(runs: Path, family_runs: Path) -> None:
    """The run has the samples of the shared family's basic stage, and its losses up to rounding."""
    here, there = only_run(runs), run_folder(family_runs, "basic", "standard")
    assert here.name == there.name
    assert (here / "samples.jsonl").read_bytes() == (there / "samples.jsonl").read_bytes()
    assert losses(here) == pytest.approx(losses(there), abs=2e-3)


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
    family_runs, small, shell, tmp_path, placement
):
    result = shell("train", *small, *BASIC, *placement)
    assert result.code == 0, result.err
    assert_like_the_family(tmp_path / "runs", family_runs)


def test_torchrun_may_start_the_ranks(family_runs, small, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tinyllama.train"]
    done = subprocess.run(
        [sys.executable, *torchrun, *small, *BASIC],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_like_the_family(tmp_path / "runs", family_runs)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_continues_bit_for_bit_without_a_repeated_or_missing_step(
    unbroken, small, tmp_path, begin, shell, number
):
    """Asked to stop, in good order; killed, from its last checkpoint."""
    process = begin("train", *small, *LONGER)
    wait_for_steps(process, tmp_path / "runs", 8)
    while not list((only_run(tmp_path / "runs") / "checkpoints").glob("0*")):  # it may still be on its way to the disk
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGTERM: 75, signal.SIGKILL: -signal.SIGKILL}[number], err
    assert "goes on from there" in err or number == signal.SIGKILL
    result = shell("train", *small, *LONGER)
    assert result.code == 0, result.err
    assert "goes on after step" in result.err
    here = only_run(tmp_path / "runs")
    assert (here / "samples.jsonl").read_bytes() == (only_run(unbroken) / "samples.jsonl").read_bytes()
    assert [line["step"] for line in lines(here / "metrics.jsonl")] == list(range(1, 40))
    ours, theirs = final_weights(tmp_path / "runs"), final_weights(unbroken)
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_a_run_that_is_done_says_so_and_leaves(unbroken, settings, run):
    result = run("train", *settings, f"paths.runs={unbroken}", *LONGER)
    assert result.code == 0
    assert "is done" in result.err


def test_only_the_last_checkpoints_and_the_milestones_stay(small, shell, tmp_path):
    keeping = ["stage.tokens=20K", "checkpoint.milestones=[2K]", "checkpoint.every_tokens=2K"]
    result = shell("train", *small, *LONGER, *keeping)
    assert result.code == 0, result.err
    kept = sorted(int(path.name) for path in (only_run(tmp_path / "runs") / "checkpoints").iterdir())
    assert kept == [2048, 16384, 18432, 20480]


@pytest.fixture
def half(unbroken, tmp_path):
    """A run that was killed after step 37: a copy of the unbroken one without what came later."""
    copy_of(unbroken, tmp_path / "runs")
    folder = only_run(tmp_path / "runs")
    (folder / "DONE").unlink()
    newest = max((folder / "checkpoints").iterdir())
    assert int(newest.name) == 39 * 1024
    shutil.rmtree(newest)
    for journal in ("metrics.jsonl", "samples.jsonl"):
        kept = (folder / journal).read_text().splitlines(keepends=True)[:37]
        (folder / journal).write_text("".join(kept))
    return folder


def test_a_damaged_checkpoint_is_passed_over_with_a_word_and_without_a_good_one_the_run_refuses(
    half, unbroken, small, shell, tmp_path
):
    older, newer = sorted((half / "checkpoints").iterdir())[-2:]
    flip(newer / "weights.safetensors")
    result = shell("train", *small, *LONGER)
    assert result.code == 0
    assert "weights.safetensors is damaged" in result.err
    assert f"goes on after step {int(older.name) // 1024}" in result.err
    ours, theirs = final_weights(tmp_path / "runs"), final_weights(unbroken)
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    (half / "DONE").unlink()
    for checkpoint in (half / "checkpoints").iterdir():
        flip(checkpoint / "exp_avg.safetensors")
    result = shell("train", *small, *LONGER)
    assert result.code == 3
    assert "none of the" in result.err and "Traceback" not in result.err


def test_the_same_run_may_train_in_two_folders_at_the_same_time(small, tmp_path, begin, shell):
    """Neither removes the shared memory of the other."""
    settings = [*small, *LONGER, "cluster.processes=2", "cluster.micro_batch=2"]
    first = begin("train", *settings)
    wait_for_steps(first, tmp_path / "runs", 2)
    os.kill(first.pid, signal.SIGSTOP)
    ranks = [int(pid) for pid in Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()]
    for rank in ranks:
        os.kill(rank, signal.SIGSTOP)
    second = shell("train", *settings, f"paths.runs={tmp_path / 'others'}")
    for pid in [*ranks, first.pid]:
        os.kill(pid, signal.SIGCONT)
    _, err = first.communicate()
    assert (first.returncode, second.code) == (0, 0), err + second.err
    assert "No such file" not in err + second.err
    ours, theirs = (only_run(tmp_path / name) / "samples.jsonl" for name in ("runs", "others"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_run_that_is_being_trained_is_not_trained_twice(small, tmp_path, begin, run):
    endless = [*small, "stage=basic", "stage.tokens=10M", "schedule.horizon_tokens=10M"]
    process = begin("train", *endless)
    wait_for_steps(process, tmp_path / "runs", 2)
    second = run("train", *endless)
    process.kill()
    process.communicate()
    assert second.code == 2
    assert "is being trained by another process" in second.err
