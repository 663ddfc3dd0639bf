"""The local launcher: failures stay in their branch, and a stopped family goes on."""

import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.forked import Forked
from tests.shared import copy_of


def names(runs: Path) -> dict[str, bool]:
    """Stage of each run that was begun, and whether it is done."""
    begun = [path for path in (runs / "demo").iterdir() if (path / "plan.json").is_file()]
    plans = {path: json.loads((path / "plan.json").read_text()) for path in begun}
    return {plan["stage"] + plan["variants"][0]: (path / "DONE").is_file() for path, plan in plans.items()}


def test_a_node_that_fails_holds_up_its_descendants_and_nobody_else(settings, data, shell, tmp_path):
    broken = tmp_path / "data"
    copy_of(data, broken)
    for shard in (broken / "shards" / "demo-32" / "skypile" / "train").glob("*.mds"):
        shard.unlink()
    sweep = ["+variant=chinese,standard", "stage=basic,continual,cooldown"]
    result = shell("train", "-m", *settings, f"paths.data={broken}", f"paths.runs={tmp_path / 'runs'}", *sweep)
    assert result.code == 3, "damage is all that went wrong"
    done = names(tmp_path / "runs")
    assert done == {
        "basicchinese": True,
        "continualchinese": False,
        "continualstandard": True,
        "cooldownstandard": True,
    }
    _, *table = result.err[result.err.index("Validation loss") :].splitlines()
    reasons = [line for line in table if ": " in line]
    status = {(line.split("-")[0].strip(), "chinese" in line): line for line in table if line not in reasons}
    assert status["continual", True].split()[1] == "failed"
    assert "  not started  chinese" in status["cooldown", True]
    assert status["cooldown", False].split()[1] == "done"
    assert "failed: " in reasons[0] and "skypile" in reasons[0]
    log = Path(reasons[1].removeprefix("  log: "))
    assert "error: " in log.read_text() and "skypile" in log.read_text()
    assert re.fullmatch(r"cooldown-\w+ not started: continual-\w+ failed", reasons[2])
    assert "2 of 5 runs did not come to their end" in result.err


def test_a_sweep_whose_ancestor_is_not_done_names_it_and_starts_nothing(small, shell, tmp_path):
    result = shell("train", "-m", *small, "+variant=chinese,standard", "stage=continual,cooldown")
    assert result.code == 2
    assert "stage.parent=basic of stage=continual has not been trained" in result.err
    assert not (tmp_path / "runs").exists()


def wait_for_line(process: Forked, *words: str) -> None:
    """Until it has printed a line with all of these words on standard error."""
    while not any(all(word in line for word in words) for line in process.printed().splitlines()):
        assert process.poll() is None, f"{words} are not printed: {process.printed()}"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_family_that_is_stopped_goes_on_with_the_same_command(small, begin, shell, tmp_path, jobs):
    command = [*small, "stages.basic.tokens=4K", "stages.continual.tokens=60K", "schedule.horizon_tokens=90K",
               "+variant=chinese,math_code", "stage=basic,continual", f"hydra.launcher.jobs={jobs}",
               "trace=true"]  # fmt: skip
    process = begin("train", "-m", *command)
    wait_for_line(process, "continual", "step ")
    if jobs == 1:
        process.send_signal(signal.SIGTERM)
    else:
        os.killpg(process.pid, signal.SIGINT)  # a terminal's Ctrl-C
    err = process.communicate()[1]
    assert process.returncode == 75, err
    assert "Traceback" not in err and "failed" not in err
    assert not all(names(tmp_path / "runs").values())
    result = shell("train", "-m", *command)
    assert result.code == 0, result.err
    assert names(tmp_path / "runs") == {"basicchinese": True, "continualchinese": True, "continualmath_code": True}
    for path in (tmp_path / "runs" / "demo").glob("*/samples.jsonl"):
        steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
        assert steps == list(range(1, len(steps) + 1))
        assert (path.with_name("log.txt").exists()) == (jobs == 2)


@pytest.mark.slow
def test_whoever_asks_to_stop_when_all_is_done_need_not_wait_for_a_store_out_of_reach(small, begin, tmp_path):
    with socket.socket() as deaf:  # bound, but nobody listens
        deaf.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        process = begin("train", "-m", *small, "stage=basic", "tracking=mlflow", f"tracking.uri={uri}")
        wait_for_line(process, "run ", " status ", " variants")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (recorders := children.read_text().split()):  # they try to deliver
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
        assert process.returncode == 0, err
        for pid in recorders:  # for minutes, left to themselves
            os.kill(int(pid), signal.SIGKILL)
    assert names(tmp_path / "runs") == {"basicslimpajama": True}
    assert list((tmp_path / "runs" / "demo").glob("*/outbox/*.json")), "nothing was left to deliver"


def test_what_a_sweep_says_of_a_stage_holds_for_the_ancestor_of_the_others(small, run, tmp_path):
    result = run("plan", *small, "stage=basic,continual", "stage.tokens=4K", "format=json")
    assert result.code == 0
    basic, continual = json.loads(result.out)["nodes"]
    assert basic["tokens"] == continual["tokens"] == continual["start_tokens"] == 4096


def test_a_number_of_jobs_below_one_is_refused(small, run):
    result = run("train", "-m", *small, "stage=basic", "hydra.launcher.jobs=0")
    assert result.code == 2
    assert "hydra.launcher.jobs=0" in result.err


def test_more_ranks_than_gpus_are_refused_before_anything_starts(small, run, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-1f")
    result = run("train", "-m", *small, "stage=basic,continual", "cluster.processes=4")
    assert result.code == 2
    assert "cluster.processes=4 of stage=basic" in result.err and "4, GPU-1f" in result.err
    assert "cluster.processes=2 or less" in result.err
    assert not (tmp_path / "runs").exists()
