"""A life is watched by what it writes, killed where it is due, and leaves no process behind. Any program will do."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import tinyllama.drilling.life
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.drilling.fork_server import ForkServer
from tinyllama.drilling.life import Life, Pace, live
from tinyllama.drilling.points import Kill, Placement

STEPS = """
import json, os, pathlib, sys, time

run, writing = map(pathlib.Path, sys.argv[1:3])
def step(number):
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": number, "time": time.time()}) + "\\n")
    time.sleep(0.05)
"""
"""The beginning of a program that takes steps as a run does."""

RANK = """
if os.fork() == 0:
    os.setpgid(0, 0)
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (run / "rank").write_text(str(os.getpid()))
    time.sleep(100)
"""
"""A process like a rank: it has a group of its own, and ends when it likes to."""

KILL_AT_4 = Kill(signal.SIGKILL, "step", 4, 0.5)
PACE = Pace(start=0.2, step=0.05, whole=1.0)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    return RunFolder(tmp_path / "run")


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


@pytest.fixture
def lead(server, folder, tmp_path, monkeypatch):
    """lead(body, kill) -> the life of a program."""

    def lead_life(body: str, kill: Kill | None = None, limit_seconds: float = 60.0, last_step: int = 1000) -> Life:
        program = tmp_path / "program.py"
        program.write_text(STEPS + body)
        monkeypatch.setattr(tinyllama.drilling.life, "TRAIN", program)
        paths = [str(folder.path), str(folder.writing(5))]
        log = tmp_path / "log"
        return live(server, paths, folder, Placement(1, 1), log, kill, PACE, 2, last_step, limit_seconds)

    return lead_life


def is_alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_life_that_is_left_alone_comes_to_its_end(lead):
    life = lead("for number in range(1, 5): step(number)")
    assert (life.signal, life.code, life.fault) == (None, 0, None)
    assert (life.resumed_from_step, life.at_step) == (0, 4)


def test_sigkill_takes_all_processes_of_a_life_though_they_have_groups_of_their_own(lead, folder):
    life = lead(RANK + "for number in range(1, 100): step(number)", KILL_AT_4)
    assert (life.signal, life.during, life.code, life.fault) == (signal.SIGKILL, "step", -9, None)
    assert life.at_step >= 4
    assert not is_alive(int((folder.path / "rank").read_text()))


def test_steps_of_earlier_lives_do_not_count(lead, folder):
    earlier = [{"step": step, "time": time.time() - 1} for step in range(1, 9)]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in earlier))
    life = lead("for number in range(3, 100): step(number)", KILL_AT_4)
    assert life.resumed_from_step == 2
    assert 4 <= life.at_step < 99


def test_a_checkpoint_that_is_being_written_is_met_by_the_signal_and_a_leftover_is_not(lead, folder):
    leftover = folder.writing(1)
    leftover.mkdir()
    os.utime(leftover, (1, 1))
    checkpoints = "for number in range(1, 100):\n step(number)\n if number == 5: writing.mkdir(); time.sleep(100)"
    life = lead(checkpoints, Kill(signal.SIGKILL, "checkpoint", 4, 0.5))
    assert (life.during, life.at_step) == ("checkpoint", 5)


def test_a_checkpoint_that_was_missed_is_not_waited_for_for_ever(lead):
    life = lead("for number in range(1, 100): step(number)", Kill(signal.SIGKILL, "checkpoint", 4, 0.5))
    assert (life.signal, life.during) == (signal.SIGKILL, "step")
    assert life.at_step >= 7  # two steps lie between checkpoints


def test_no_kill_waits_for_a_checkpoint_until_the_run_is_over(lead):
    body = "for number in range(1, 8): step(number)\nstep(8)\ntime.sleep(100)"
    life = lead(body, Kill(signal.SIGTERM, "checkpoint", 7, 0.5), last_step=10)
    assert (life.signal, life.during, life.at_step) == (signal.SIGTERM, "step", 8)


@pytest.mark.slow
def test_a_life_that_does_not_heed_a_signal_hangs_and_is_ended(lead, folder):
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    body = RANK + deaf + "for number in range(1, 9): step(number)\nprint('deaf', flush=True)\ntime.sleep(100)"
    life = lead(body, Kill(signal.SIGTERM, "step", 2, 0.5), limit_seconds=6.0)
    assert life.hung
    assert "hung for" in life.fault and "after SIGTERM during step" in life.fault and "deaf" in life.fault
    assert not is_alive(int((folder.path / "rank").read_text()))


@pytest.mark.parametrize(
    "code, during, good",
    [(75, "step", True), (0, "step", True), (1, "step", False), (-15, "step", False), (-15, "start-up", True)],
)
def test_after_sigterm_only_an_end_in_good_order_is_good(tmp_path, code, during, good):
    (tmp_path / "log").write_text("")
    life = Life(Placement(1, 1), signal.SIGTERM, during, 0, 1, code, False, PACE, tmp_path / "log")
    assert (life.fault is None) == good
