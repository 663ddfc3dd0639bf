"""The local launcher: failures stay in their branch, and a stopped family goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def names(runs: Path) -> dict[str, bool]:
    """Stage of each run that was begun, and whether it is done."""
    begun = [path for path in (runs / "demo").iterdir() if (path / "plan.json").is_file()]
    plans = {path: json.loads((path / "plan.json").read_text()) for path in begun}
    return {plan["stage"] + plan["variants"][0]: (path / "DONE").is_file() for path, plan in plans.items()}


def test_a_node_that_fails_holds_up_its_descendants_and_nobody_else(settings, data, shell, tmp_path):
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    for shard in (broken / "shards" / "demo-32" / "skypile" / "train").glob("*.mds"):
        shard.unlink()
    sweep = ["+variant=chinese,standard", "stage=basic,continual,cooldown", "tracking=none"]
    result = shell("train", "-m", *settings, f"paths.data={broken}", f"paths.runs={tmp_path / 'runs'}", *sweep)
    assert result.code == 1
    done = names(tmp_path / "runs")
    assert done == {
        "basicchinese": True,
        "continualchinese": False,
        "continualstandard": True,
        "cooldownstandard": True,
    }
    table = result.err[result.err.index("Validation loss") :]
    status = {(line.split("-")[0].strip(), "chinese" in line): line for line in table.splitlines()}
    assert "failed with exit code" in status["continual", True]
    assert "not started: continual" in status["cooldown", True]
    assert status["cooldown", False].split()[-1] == "done"
    assert "2 of 5 runs did not come to their end" in result.err


def test_a_sweep_whose_ancestor_is_not_done_names_it_and_starts_nothing(small, shell, tmp_path):
    result = shell("train", "-m", *small, "+variant=chinese,standard", "stage=continual,cooldown")
    assert result.code == 2
    assert "stage.parent=basic of stage=continual has not been trained" in result.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_family_that_is_stopped_goes_on_with_the_same_command(small, shell, tmp_path, jobs):
    command = [*small, "stages.continual.tokens=60K", "schedule.horizon_tokens=90K", "+variant=chinese,math_code",
               "stage=basic,continual", "tracking=none", f"hydra.launcher.jobs={jobs}", "trace=true"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "tinyllama.train", "-m", *command],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "continual" in line and "step " in line:
            break
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 75, err
    assert not all(names(tmp_path / "runs").values())
    result = shell("train", "-m", *command)
    assert result.code == 0, result.err
    assert names(tmp_path / "runs") == {"basicchinese": True, "continualchinese": True, "continualmath_code": True}
    for path in (tmp_path / "runs" / "demo").glob("*/samples.jsonl"):
        steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
        assert steps == list(range(1, len(steps) + 1))


def test_what_a_sweep_says_of_a_stage_holds_for_the_ancestor_of_the_others(small, run, tmp_path):
    result = run("plan", *small, "stage=basic,continual", "stage.tokens=4K", "format=json")
    assert result.code == 0
    basic, continual = json.loads(result.out)["nodes"]
    assert basic["tokens"] == continual["tokens"] == continual["start_tokens"] == 4096


def test_a_number_of_jobs_below_one_is_refused(small, run):
    result = run("train", "-m", *small, "stage=basic", "hydra.launcher.jobs=0")
    assert result.code == 2
    assert "hydra.launcher.jobs=0" in result.err
