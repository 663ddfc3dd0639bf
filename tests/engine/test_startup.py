"""Real processes: their places, their ends, the signals they get."""

import faulthandler
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
import torch

from tests.engine.conftest import Trainer, cluster
from tests.forked import in_child
from tinyllama.engine import heartbeat, startup, supervisor
from tinyllama.engine.startup import run_ranks
from tinyllama.errors import ConfigError, Stopped, TinyllamaError
from tinyllama.world import World

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def rank() -> int:
    return int(os.environ["RANK"])


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(supervisor, "SETTLE_SECONDS", 1.0)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_ranks_meet_and_know_their_places(processes: int, tmp_path: Path) -> None:
    def main() -> None:
        world = startup.initialize(cluster(threads=1))
        assert world == World(rank(), processes, rank(), processes)
        total = torch.ones(1) * world.rank
        torch.distributed.all_reduce(total)
        (tmp_path / str(world.rank)).write_text(str(int(total)))
        startup.finalize()

    assert in_child(lambda: run_ranks(main, (), processes)) == 0  # a single rank runs in its caller
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
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_NODEID": "1",
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
        heartbeat.finished(5)
        if rank() == 0:
            time.sleep(2 * supervisor.GRACE_SECONDS)
            (tmp_path / "checkpoint").touch()
        raise Stopped("in good order")

    with pytest.raises(Stopped):
        run_ranks(main, (), 2)
    assert (tmp_path / "checkpoint").exists()


def test_of_a_fault_one_traceback_and_one_message_are_told_and_the_file_holds_the_others(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def main() -> None:
        startup.initialize(cluster(threads=1))
        heartbeat.finished(7)
        torch.distributed.barrier()
        if rank() == 1:
            with heartbeat.doing("in training"):
                raise ValueError("the real cause")
        torch.distributed.barrier()

    with pytest.raises(TinyllamaError) as caught:
        run_ranks(main, (), 3, faults=tmp_path / "faults.txt")
    assert str(caught.value) == (
        "rank 1 failed in training, after step 7: ValueError: the real cause and the others were ended; "
        f"the same command goes on from the last checkpoint; stack traces: {tmp_path}/faults.txt"
    )
    assert caught.value.exit_code == 1
    shown, kept = capfd.readouterr().err, (tmp_path / "faults.txt").read_text()
    assert shown.count("Traceback") == 1 and "ValueError: the real cause" in shown
    assert kept.count("Traceback") == 3
    assert kept.splitlines()[0].endswith("rank 1 in training, after step 7")


def test_a_rank_that_tidies_up_for_long_after_its_error_is_still_the_first_cause_and_holds_up_nobody() -> None:
    def main() -> None:
        startup.initialize(cluster(threads=1))
        torch.distributed.barrier()
        if rank() == 1:
            try:
                with heartbeat.doing("in training"):
                    raise ValueError("the real cause")
            finally:
                startup.finalize()  # the other loses its peer and fails,
                time.sleep(60)  # long before this one is ready to end
        torch.distributed.barrier()

    with pytest.raises(TinyllamaError, match="rank 1 failed in training: ValueError: the real cause"):
        run_ranks(main, (), 2)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV])
def test_a_killed_rank_is_named_with_its_signal_and_its_step_and_the_others_are_ended(
    number: signal.Signals, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def main() -> None:
        startup.initialize(cluster(threads=1))
        with heartbeat.doing("in training"):
            heartbeat.finished(3)
            torch.distributed.barrier()
            (tmp_path / str(os.getpid())).touch()
            if rank() == 1:
                faulthandler.disable()  # pytest's
                os.kill(os.getpid(), number)
            torch.distributed.barrier()

    with pytest.raises(TinyllamaError, match=f"^rank 1 was killed by {number.name}.* in training, after step 3") as end:
        run_ranks(main, (), 2)
    assert end.value.exit_code == 128 + number
    assert "Traceback" not in capfd.readouterr().err
    assert not any(running(path.name) for path in tmp_path.iterdir())


def test_a_rank_that_heeds_nothing_is_killed_when_another_has_died(tmp_path: Path) -> None:
    def main() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (tmp_path / str(os.getpid())).touch()
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
        if rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)

    with pytest.raises(TinyllamaError, match="rank 1 was killed by SIGKILL"):
        run_ranks(main, (), 2)
    assert not any(running(path.name) for path in tmp_path.iterdir())


def test_a_frozen_rank_is_named_once_the_others_have_waited_for_the_time_out(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def main() -> None:
        trainer = Trainer(cluster(timeout_minutes=2 / 60))
        trainer.step(0)
        (tmp_path / str(os.getpid())).touch()
        with heartbeat.doing("in training"):
            heartbeat.finished(1)
            if rank() == 1:
                os.kill(os.getpid(), signal.SIGSTOP)
            trainer.step(1)

    with pytest.raises(TinyllamaError) as caught:
        run_ranks(main, (), 2, timeout_minutes=2 / 60)
    message = str(caught.value)
    assert message.startswith("rank 1 was awaited for cluster.timeout_minutes=0.0333333 in vain")
    assert "it hangs in training, after step 1 " in message
    assert message.endswith("the same command goes on from the last checkpoint")
    assert "Traceback" not in capfd.readouterr().err
    assert not any(running(path.name) for path in tmp_path.iterdir())


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_rank_that_is_frozen_while_it_starts_is_named_too(frozen: int) -> None:
    def main() -> None:
        if rank() == frozen:
            os.kill(os.getpid(), signal.SIGSTOP)
        startup.initialize(cluster(timeout_minutes=2 / 60))

    with pytest.raises(TinyllamaError, match=f"^rank {frozen} was awaited .* while starting.* starts again"):
        run_ranks(main, (), 2, timeout_minutes=2 / 60)


def test_a_rank_that_others_started_says_itself_that_it_has_waited_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    places = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(supervisor.free_port())}
    for name, value in (places | address).items():
        monkeypatch.setenv(name, value)

    def main() -> None:
        startup.initialize(cluster(timeout_minutes=1 / 60))

    def message() -> str:
        with pytest.raises(TinyllamaError) as caught:
            run_ranks(main, (), 1, timeout_minutes=1 / 60)
        return str(caught.value)

    assert in_child(message).startswith("rank 0 has waited for cluster.timeout_minutes=0.0166667 while meeting")


def test_before_training_a_signal_ends_all_ranks_at_once_even_one_that_waits_for_another() -> None:
    def main() -> None:
        if rank() == 1:
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(600)
        startup.initialize(cluster(timeout_minutes=10.0))

    with pytest.raises(Stopped, match="nothing|anything to save"):
        run_ranks(main, (), 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_reach_every_rank(number: signal.Signals, tmp_path: Path) -> None:
    def main() -> None:
        caught: list[int] = []
        heartbeat.finished(0)
        signal.signal(number, lambda received, frame: caught.append(received))
        (tmp_path / f"ready-{rank()}").touch()
        while not caught:
            time.sleep(0.01)
        raise Stopped("in good order")

    def send_when_ready() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    sender = threading.Thread(target=send_when_ready)
    sender.start()
    with pytest.raises(Stopped):
        run_ranks(main, (), 2)
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


def test_a_step_on_the_cpu_goes_on_with_the_memory_that_the_last_one_gave_back(in_ranks: Callable[..., list]) -> None:
    for faults, pages in in_ranks(2, page_faults_of_a_step):
        assert faults < pages / 10


def page_faults_of_a_step() -> tuple[float, float]:
    """Pages that the system has to find for a step, once some have been taken, and those that its gradients fill."""
    trainer, faults = Trainer(cluster()), []
    for step in range(14):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        trainer.step(step)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    gradients = sum(parameter.nbytes for parameter in trainer.model.parameters())
    return median(faults[8:]), gradients / resource.getpagesize()
