"""Runs that are asked to stop, that lose a rank or their supervisor: nothing is lost, and the last line tells why."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.forked import Forked, Forkserver
from tinyllama.engine.supervisor import free_port
from tinyllama.signals import NOTHING_TO_SAVE

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ASKING = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]
STEPS = 23
RUN = ["stage=basic", "stage.tokens=24K", "schedule.horizon_tokens=24K", "trace=true"]
BUSY = ["checkpoint.every_tokens=1024", "validation.every_tokens=1024", "validation.fraction=0.1"]
"""Validation and a checkpoint after every step."""
PLACEMENT = {1: ["cluster.micro_batch=4"], 2: ["cluster.processes=2", "cluster.micro_batch=2"]}


class Life:
    """A run in processes of its own, from one start to one end."""

    def __init__(self, runs: Path, process: "subprocess.Popen[str] | Forked"):
        self.runs, self.process, self.pid = runs, process, process.pid

    @property
    def folder(self) -> Path:
        (folder,) = (self.runs / "demo").iterdir()
        return folder

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert self.process.poll() is None, f"ended too early with {self.process.returncode}: {self.end()[1]}"
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def until_it_steps(self) -> None:
        """Until it has taken a step of its own."""
        before = self.steps()
        self.until(lambda: self.steps() > before)

    def has_begun(self) -> bool:
        """Whether it has written what it is going to train."""
        return any(self.runs.glob("demo/*/plan.json"))

    def until_it_saves(self) -> None:
        """Until a checkpoint is half written."""
        self.until(lambda: any(self.folder.glob("checkpoints/.*writing")))

    def steps(self) -> int:
        found = list(self.runs.glob("demo/*/metrics.jsonl"))
        return found[0].read_text().count("\n") if found else 0

    def hears(self) -> bool:
        """Whether the command has taken over SIGTERM, by the kernel's word."""
        return signal.SIGTERM in handled(self.pid)

    def descendants(self, pid: int | None = None) -> list[int]:
        children: list[int] = []
        with suppress(FileNotFoundError, ProcessLookupError):  # it may end while it is looked at
            for task in Path("/proc", str(pid or self.pid), "task").iterdir():
                children += [int(child) for child in (task / "children").read_text().split()]
        return [*children, *(each for child in children for each in self.descendants(child))]

    def ranks(self) -> list[int]:
        """The process ids of the ranks, by rank; their first word to the kernel is a group of their own."""
        return [pid for pid in self.descendants() if leads_a_group(pid)]

    def storm(self, number: signal.Signals) -> tuple[int, str]:
        """Send this signal, and all others until the process has ended; its exit code and what it said."""
        self.process.send_signal(number)
        others = cycle(ASKING)
        while self.process.poll() is None:
            time.sleep(0.02)
            self.process.send_signal(next(others))
        return self.end()

    def end(self) -> tuple[int, str]:
        _, said = self.process.communicate(timeout=120)
        return self.process.returncode, said


def handled(pid: int) -> set[int]:
    """Signals for which a process has a handler."""
    for line in Path("/proc", str(pid), "status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            mask = int(line.split()[1], 16)
            return {number for number in range(1, 65) if mask >> (number - 1) & 1}
    return set()


def leads_a_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:  # a helper that has ended since it was listed
        return False


def alive(pid: int) -> bool:
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(scope="session")
def live(begin: Callable[..., Forked]) -> Callable[[Path, Sequence[str]], Life]:
    """live(runs, overrides) starts a life whose imports are paid."""
    return lambda runs, overrides: Life(runs, begin("train", *overrides, f"paths.runs={runs}"))


def require_whole(folder: Path) -> None:
    """It is done, and each step was trained once."""
    assert (folder / "DONE").is_file()
    for journal in ("metrics.jsonl", "samples.jsonl"):
        steps = [json.loads(line)["step"] for line in (folder / journal).read_text().splitlines()]
        assert steps == list(range(1, STEPS + 1))


def require_same(folder: Path, unbroken: Path) -> None:
    """The same samples and final weights, bit for bit."""
    assert (folder / "samples.jsonl").read_bytes() == (unbroken / "samples.jsonl").read_bytes()
    ours, theirs = (load_file(max((path / "checkpoints").glob("0*")) / "weights.safetensors")
                    for path in (folder, unbroken))  # fmt: skip
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_signals_during_the_imports_of_a_fresh_interpreter_stop_it_in_good_order(settings, tmp_path):
    command = [sys.executable, "-m", "tinyllama.train", *settings, *RUN, f"paths.runs={tmp_path / 'runs'}"]
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    life = Life(tmp_path / "runs", process)
    life.until(life.hears)
    code, said = life.storm(signal.SIGTERM)
    assert code == 75, said
    assert said.splitlines()[-1] == f"error: {NOTHING_TO_SAVE}" and "Traceback" not in said
    assert not life.runs.exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_signals_in_every_phase_and_more_of_them_stop_in_good_order_and_the_run_goes_on(
    processes, live, settings, tmp_path
):
    runs, overrides = tmp_path / "runs", [*settings, *RUN, *PLACEMENT[processes]]
    asking = cycle(ASKING)

    # While it starts there is nothing to save: each rank is asked too, as soon as it was forked.
    starting: list[Callable[[Life], bool]] = [Life.hears, Life.has_begun]
    if processes > 1:
        starting.append(lambda life: len(life.ranks()) == processes)
    for phase in starting:
        life = live(runs, overrides)
        life.until(lambda life=life, phase=phase: phase(life))
        code, said = life.storm(next(asking))
        assert code == 75, said
        assert said.splitlines()[-1].startswith("error: st") and "Traceback" not in said

    # Between steps, in one or in validation, and while a checkpoint is written.
    for trigger in (Life.until_it_saves, Life.until_it_steps):
        life = live(runs, [*overrides, *BUSY])
        life.until_it_steps()
        trigger(life)
        code, said = life.storm(next(asking))
        assert code == 75, said
        assert "stopped after a checkpoint" in said.splitlines()[-1] and "Traceback" not in said

    # After the last step, before its checkpoint and DONE.
    life = live(runs, overrides)
    life.until(lambda: life.steps() == STEPS)
    code, said = life.storm(next(asking))
    assert code == 0, said
    require_whole(life.folder)

    if processes == 2:  # the drill and the matrix of test_runs.py compare all others
        undisturbed = live(tmp_path / "undisturbed", overrides)
        code, said = undisturbed.end()
        assert code == 0, said
        require_same(life.folder, undisturbed.folder)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("processes", [1, 2])
def test_signals_at_random_moments_stop_in_good_order(processes, live, settings, tmp_path):
    dice, runs = random.Random(processes), tmp_path / "runs"
    overrides = [*settings, *RUN, *BUSY, *PLACEMENT[processes], "stage.tokens=200K", "schedule.horizon_tokens=200K"]
    for _ in range(20):
        life = live(runs, overrides)
        life.until(life.hears)
        time.sleep(dice.uniform(0, 4))
        code, said = life.storm(dice.choice(ASKING))
        assert code in (0, 75) and "Traceback" not in said, said
        if code == 0:
            break
    code, said = live(runs, overrides).end()
    assert code == 0, said
    steps = [json.loads(line)["step"] for line in (life.folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 196))


@pytest.fixture
def torn(live, settings: list[str], tmp_path: Path) -> Iterator[Callable[..., Life]]:
    """A life on two ranks that has trained some steps after a checkpoint, to be hurt."""
    lives = []

    def begin(*overrides: str) -> Life:
        life = live(tmp_path / "runs", [*settings, *RUN, "validation.every_tokens=1024", *PLACEMENT[2], *overrides])
        lives.append(life)
        life.until(lambda: life.steps() >= 8)
        return life

    yield begin
    for life in lives:
        life.process.kill()


@pytest.fixture
def goes_on(live, settings: list[str]) -> Callable[[Life], None]:
    """The next start of the same run comes to its end."""

    def require(life: Life) -> None:
        code, said = live(life.runs, [*settings, *RUN, *PLACEMENT[2]]).end()
        assert code == 0, said
        assert "goes on after step" in said
        require_whole(life.folder)

    return require


@pytest.mark.parametrize("number, rank", [(signal.SIGKILL, 0), (signal.SIGABRT, 1)])
def test_a_rank_that_dies_takes_the_other_with_it_and_the_last_line_names_it(rank, number, torn, goes_on):
    life = torn()
    ranks = life.ranks()
    os.kill(ranks[rank], number)
    code, said = life.end()
    assert code == 128 + number
    last = said.splitlines()[-1]
    assert last.startswith(f"error: rank {rank} was killed by {number.name}")
    assert "in training, after step" in last and "the same command goes on from the last checkpoint" in last
    assert "Traceback" not in said
    assert not any(alive(pid) for pid in ranks)
    if number == signal.SIGKILL:
        goes_on(life)


def test_a_rank_that_hangs_is_awaited_for_the_time_out_then_named_and_ended(torn):
    life = torn("cluster.timeout_minutes=0.1")
    ranks = life.ranks()
    os.kill(ranks[1], signal.SIGSTOP)
    code, said = life.end()
    assert code == 1
    last = said.splitlines()[-1]
    assert last.startswith("error: rank 1 was awaited for cluster.timeout_minutes=0.1 in vain: it hangs in training, ")
    assert "Traceback" not in said
    assert "Timed out" in (life.folder / "faults.txt").read_text()
    assert not any(alive(pid) for pid in ranks)


def test_ranks_that_others_started_say_themselves_that_they_have_waited_in_vain(begin, settings, tmp_path):
    overrides = [*settings, *RUN, *BUSY, "cluster.timeout_minutes=0.1", f"paths.runs={tmp_path / 'runs'}"]
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    waiting, frozen = (
        begin("train", *overrides, environ={**os.environ, **place, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"
    )
    try:
        life = Life(tmp_path / "runs", waiting)
        life.until(lambda: life.steps() >= 3)
        frozen.send_signal(signal.SIGSTOP)
        code, said = life.end()
        assert code == 1
        expected = "error: rank 0 has waited for cluster.timeout_minutes=0.1 in training, after step"
        assert said.splitlines()[-1].startswith(expected), said
    finally:
        frozen.kill()


def test_ranks_do_not_outlive_a_killed_supervisor_and_the_next_start_goes_on_at_once(torn, goes_on):
    life = torn()
    ranks = life.ranks()
    life.process.kill()
    goes_on(life)
    assert not any(alive(pid) for pid in ranks)


def test_a_family_whose_launcher_is_killed_leaves_nobody_behind_and_goes_on_when_asked_to_stop(
    live, settings, tmp_path
):
    runs = tmp_path / "runs"
    family = ["-m", *settings, *BUSY, *PLACEMENT[2], "stage=basic,continual"]
    killed = live(runs, family)
    killed.until(lambda: killed.steps() >= 3)
    people = killed.descendants()
    assert len(killed.ranks()) == 2
    killed.process.kill()
    killed.end()
    starting, between = (lambda life: len(life.ranks()) == 2), (lambda life: len(list(runs.glob("demo/*/DONE"))) == 1)
    for trigger in (starting, between):  # while a run starts, and between two of them
        life = live(runs, family)
        life.until(lambda life=life, trigger=trigger: trigger(life))
        code, said = life.storm(signal.SIGTERM)
        assert code == 75, said
    assert not any(alive(pid) for pid in people)
    code, said = live(runs, family).end()
    assert code == 0, said
    assert len(list(runs.glob("demo/*/DONE"))) == 2


def test_a_stop_reaches_all_processes_of_a_group_and_readers_leave_it_to_their_rank(live, settings, tmp_path):
    life = live(tmp_path / "runs", [*settings, *RUN, *BUSY, "cluster.workers=2"])
    life.until(lambda: life.steps() >= 3)
    for pid in [life.pid, *life.descendants()]:
        os.kill(pid, signal.SIGTERM)
    code, said = life.end()
    assert code == 75, said


OWN_MEMORY = """
import ctypes, os, runpy, subprocess, sys, tempfile

if ctypes.CDLL(None, use_errno=True).unshare(0x00020000):  # CLONE_NEWNS
    raise OSError(ctypes.get_errno(), "unshare")
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "--bind", sys.argv.pop(1), "/dev/shm"], check=True)
tempfile.tempdir = None
sys.modules.pop("tinyllama.train", None)
runpy.run_module("tinyllama.train", run_name="__main__", alter_sys=True)
"""
"""train with a /dev/shm of its own, the folder that the first argument names."""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a /dev/shm of its own")
def test_what_killed_runs_leave_in_shared_memory_stops_no_later_one_and_does_not_pile_up(
    settings, forkserver: Forkserver, tmp_path
):
    shared, temporary = tmp_path / "shm", tmp_path / "tmp"
    shared.mkdir()
    temporary.mkdir()
    (tmp_path / "train.py").write_text(OWN_MEMORY)

    def start() -> Life:
        overrides = [*settings, *RUN, "validation.every_tokens=1024", "cluster.workers=1", *PLACEMENT[2]]
        process = forkserver.server.start(
            tmp_path / "train.py", [str(shared), *overrides, f"paths.runs={tmp_path / 'runs'}"], tmp_path / "out",
            tmp_path / "err", cwd=ROOT, environ={**os.environ, "TMPDIR": str(temporary)},
        )  # fmt: skip
        return Life(tmp_path / "runs", Forked(process, tmp_path))

    def left_behind() -> list[str]:
        """Torch's own cache of compiled code lies there too."""
        found = [path.name for folder in (shared, temporary) for path in folder.iterdir()]
        return [name for name in found if not name.startswith("torchinductor")]

    left = []
    for _ in range(2):  # no pause between a death and the next start
        life = start()
        life.until_it_steps()
        for pid in [life.pid, *life.descendants()]:
            os.kill(pid, signal.SIGKILL)
        life.end()
        left.append(left_behind())
    assert left[0], "a kill left nothing behind, so this test shows nothing"
    assert len(left[1]) <= len(left[0])
    code, said = start().end()
    assert code == 0, said
    require_whole(life.folder)
    assert not left_behind()
