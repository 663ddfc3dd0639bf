"""Real processes: their places, their ends, the signals they get."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.engine.conftest import Trainer, cluster
from tinyllama.engine import startup
from tinyllama.engine.startup import run_ranks
from tinyllama.errors import ConfigError, Stopped
from tinyllama.world import World

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def rank() -> int:
    return int(os.environ["RANK"])


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "_GRACE_SECONDS", 1.0)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_ranks_meet_and_know_their_places(processes: int, tmp_path: Path) -> None:
    def main() -> None:
        world = startup.initialize(cluster(threads=1))
        assert world == World(rank(), processes, rank(), processes)
        total = torch.ones(1) * world.rank
        torch.distributed.all_reduce(total)
        (tmp_path / str(world.rank)).write_text(str(int(total)))
        startup.finalize()

    assert run_ranks(main, (), processes) == 0
    sums = [path.read_text() for path in tmp_path.iterdir()]
    assert sums == [str(sum(range(processes)))] * processes


def test_one_process_runs_here_and_leaves_the_environment_as_it_was() -> None:
    before, pids = dict(os.environ), []
    assert run_ranks(lambda: pids.append(os.getpid()), (), 1) == 0
    assert pids == [os.getpid()]
    assert dict(os.environ) == before


def test_under_a_launcher_the_given_rank_is_used_and_none_started(monkeypatch: pytest.MonkeyPatch) -> None:
    places = []
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert run_ranks(lambda: places.append((os.getpid(), World.from_environment())), (), 4) == 0
    assert places == [(os.getpid(), World(5, 8, 1, 4))]


def test_under_srun_the_place_comes_from_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    places = []
    slurm = {
        "SLURM_PROCID": "5",
        "SLURM_NTASKS": "8",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
        "SLURM_JOB_ID": "31234",
        "MASTER_ADDR": "node1",
    }
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    run_ranks(lambda: places.append((World.from_environment(), os.environ["MASTER_PORT"])), (), 1)
    assert places == [(World(5, 8, 1, 4), "21234")]


@pytest.mark.parametrize("processes", [1, 2])
def test_the_exit_code_of_main_is_returned(processes: int) -> None:
    assert run_ranks(lambda: 75, (), processes) == 75


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("error", [ConfigError("model.seq_len=0 is too short"), Stopped("stopped after 10 steps")])
def test_an_error_for_people_is_raised_once_with_its_type_and_message(
    processes: int, error: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        run_ranks(main, (), processes)
    assert capfd.readouterr() == ("", "")


def test_after_a_stop_no_rank_is_hurried(tmp_path: Path) -> None:
    def main() -> None:
        if rank() == 0:
            time.sleep(0.5)
            (tmp_path / "checkpoint").touch()
        raise Stopped("in good order")

    with pytest.raises(Stopped):
        run_ranks(main, (), 2)
    assert (tmp_path / "checkpoint").exists()


def test_of_a_fault_the_first_traceback_alone_is_shown_and_the_others_are_ended(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def main() -> None:
        startup.initialize(cluster(threads=1))
        torch.distributed.barrier()
        if rank() == 1:
            raise ValueError("the real cause")
        torch.distributed.barrier()

    assert run_ranks(main, (), 3) == 1
    shown = capfd.readouterr().err
    assert shown.startswith("rank 1 failed:")
    assert "ValueError: the real cause" in shown
    assert shown.count("Traceback") == 1


def test_a_killed_rank_is_named_and_the_others_are_ended(capfd: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        startup.initialize(cluster(threads=1))
        torch.distributed.barrier()
        if rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        torch.distributed.barrier()

    assert run_ranks(main, (), 2) == 128 + signal.SIGKILL
    assert capfd.readouterr().err.startswith("rank 1 was killed by SIGKILL")


def test_a_frozen_rank_ends_the_run_within_the_time_out(capfd: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        trainer = Trainer(cluster(timeout_minutes=2 / 60))
        trainer.step(0)
        if rank() == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        trainer.step(1)

    assert run_ranks(main, (), 2) == 1
    shown = capfd.readouterr().err
    assert shown.startswith("rank 0 failed:")
    assert "imed out" in shown


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_reach_every_rank(number: signal.Signals, tmp_path: Path) -> None:
    def main() -> int:
        caught: list[int] = []
        signal.signal(number, lambda received, frame: caught.append(received))
        (tmp_path / f"ready-{rank()}").touch()
        while not caught:
            time.sleep(0.01)
        return Stopped.exit_code

    def send_when_ready() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    sender = threading.Thread(target=send_when_ready)
    sender.start()
    assert run_ranks(main, (), 2) == Stopped.exit_code
    sender.join()
    assert signal.getsignal(number) == handler


def test_ranks_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    script = f"""
import os, time
from pathlib import Path
from tinyllama.engine.startup import run_ranks

def main():
    Path({str(tmp_path)!r}, str(os.getpid())).touch()
    time.sleep(60)

run_ranks(main, (), 2)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)})
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    parent.kill()
    parent.wait()
    for path in tmp_path.iterdir():
        wait_until(lambda pid=path.name: not running(pid))


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def running(pid: str) -> bool:
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
