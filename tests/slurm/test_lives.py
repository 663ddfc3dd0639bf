"""What a job lives through on a real cluster: limits, preemption, signals, deaths. Nothing is trained twice or lost."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from tests.conftest import Result
from tests.slurm.cluster import Slurm

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

STEPS = 59
STAGE = [
    "stage=basic", "stage.tokens=60K", "schedule.horizon_tokens=60K", "checkpoint.every_tokens=4K", "trace=true",
    "validation.every_tokens=1024",
]  # fmt: skip
TWO_NODES = ["hydra/launcher=slurm", "cluster.nodes=2", "cluster.processes=1"]


class Life:
    """A run on the cluster that was submitted by the command."""

    def __init__(self, slurm: Slurm, login: Callable[..., Result], runs: Path, *overrides: str):
        self.slurm, self.login, self.runs = slurm, login, runs
        self.overrides = [*overrides, f"paths.runs={runs}"]
        self.job = ""
        self.submit()

    def submit(self) -> Result:
        done = self.login("train", *self.overrides)
        assert done.code == 0, done.err
        self.folder = next(path for path in (self.runs / "demo").glob("basic-*"))
        self.job = json.loads((self.folder / "job" / "job.json").read_text())["id"]
        return done

    @property
    def said(self) -> str:
        """What the job's script and its ranks have printed."""
        return "".join(path.read_text() for path in sorted((self.folder / "logs").glob(f"{self.job}*.txt")))

    @property
    def restarts(self) -> int:
        return int(self.slurm.state(self.job)["Restarts"])

    def steps(self) -> int:
        journal = self.folder / "metrics.jsonl"
        return journal.read_text().count("\n") if journal.exists() else 0

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 150
        while not condition():
            if time.monotonic() >= deadline:
                pytest.fail(f"{self.slurm.state(self.job)}\n{self.said}\n{self.slurm.logs(60)}")
            time.sleep(0.02)

    def until_it_steps(self) -> None:
        """Until it has taken three more steps."""
        before = self.steps()
        self.until(lambda: self.steps() >= before + 3)

    def ranks(self) -> list[int]:
        """Processes of the ranks, as this machine numbers them."""
        told = f"hydra_plugins.tinyllama_launchers.job\0{self.folder / 'job'}\0".encode()
        lines = {int(path.parent.name): path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")}
        return sorted(pid for pid, words in lines.items() if words.endswith(told) and not words.startswith(b"srun"))

    def require_whole(self, samples: bytes) -> None:
        """It is done, with every step once and the samples of a run that nothing disturbed."""
        assert (self.folder / "DONE").is_file()
        told = [json.loads(line)["step"] for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        assert told == list(range(1, STEPS + 1))
        assert (self.folder / "samples.jsonl").read_bytes() == samples


def continue_when_asked(stopped: list[int]) -> None:
    """Once USR1 waits for each of these processes, which were stopped."""
    while not all(is_pending(signal.SIGUSR1, process) for process in stopped):
        time.sleep(0.02)
    for process in stopped:
        os.kill(process, signal.SIGCONT)


def is_pending(number: int, process: int) -> bool:
    return is_among("ShdPnd:", number, process)


def is_among(which: str, number: int, process: int) -> bool:
    """Whether a signal is in a set that the kernel tells of a process."""
    status = Path("/proc", str(process), "status").read_text()
    (found,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith(which))
    return bool(found >> (number - 1) & 1)


@pytest.fixture(scope="module")
def unbroken(settings: list[str], shell: Callable[..., Result], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """samples.jsonl of the same stage, trained in one process of this machine."""
    runs = tmp_path_factory.mktemp("unbroken")
    done = shell("train", *settings, *STAGE, f"paths.runs={runs}")
    assert done.code == 0, done.err
    return next(runs.glob("demo/basic-*/samples.jsonl")).read_bytes()


def test_a_two_node_stage_goes_on_after_a_death_a_notice_and_a_cancellation(slurm, login, settings, unbroken, tmp_path):
    life = Life(slurm, login, tmp_path / "runs", *settings, *STAGE, *TWO_NODES)
    life.until((life.folder / "LATEST").is_file)
    os.kill(life.ranks()[1], signal.SIGKILL)
    life.until(lambda: life.restarts == 1)

    life.until_it_steps()
    slurm.cancel("--batch", "--signal=USR1", life.job)  # as SLURM does ahead of the time limit
    life.until(lambda: life.restarts == 2)
    assert "ended with exit code 137; queued again" in life.said
    assert "the time limit is near; queued again" in life.said

    life.until_it_steps()
    slurm.cancel(life.job)
    assert slurm.wait(life.job)["JobState"] == "CANCELLED"
    life.until(lambda: not life.ranks())
    assert not (life.folder / "DONE").exists()
    latest = life.folder / "checkpoints" / (life.folder / "LATEST").read_text().strip()
    assert json.loads((latest / "manifest.json").read_text())["progress"]["step"] == life.steps()  # nothing is lost
    assert life.said.count("goes on after step") == 2

    first, restarts = life.job, life.restarts
    life.submit()
    assert life.job != first
    assert slurm.wait(life.job)["JobState"] == "COMPLETED", life.said
    assert "goes on after step" in life.said
    assert restarts == 2 and slurm.state(first)["JobState"] == "CANCELLED"
    life.require_whole(unbroken)


@pytest.mark.soak
def test_a_two_node_stage_goes_on_after_all_that_can_end_a_job(slurm, login, settings, unbroken, tmp_path):
    """With a time limit that expires, after two minutes, and a preemption without a warning."""
    limited = Life(
        slurm, login, tmp_path / "limited", *settings, *STAGE, *TWO_NODES, "+cluster.slurm.options.nodelist=[n3,n4]",
        "cluster.slurm.time_hours=0.033", "cluster.slurm.notice_seconds=60",
    )  # fmt: skip
    limited.until_it_steps()
    held = limited.ranks()
    for rank in held:  # as if this step took until the limit is near
        os.kill(rank, signal.SIGSTOP)

    def go_on() -> None:
        continue_when_asked(held)
        limited.until(lambda: limited.restarts == 1)
        slurm.run("scontrol", "update", f"JobId={limited.job}", "TimeLimit=60")  # the second life may take its time

    Thread(target=go_on, daemon=True).start()

    life = Life(
        slurm, login, tmp_path / "runs", *settings, *STAGE, *TWO_NODES, "+cluster.slurm.options.nodelist=[n1,n2]",
        "cluster.slurm.partition=low",
    )  # fmt: skip
    life.until_it_steps()
    slurm.cancel("--signal=USR1", life.job)
    life.until(lambda: life.restarts == 1)

    life.until_it_steps()
    other = slurm.submit("--partition=high", "--nodelist=n1,n2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    life.until(lambda: life.restarts == 2)
    slurm.wait(other)

    for each in (life, limited):
        assert slurm.wait(each.job)["JobState"] == "COMPLETED", each.said
        each.require_whole(unbroken)
    assert "asked by USR1 to stop; queued again" in life.said
    assert life.said.count("goes on after step") == 2
    assert "the time limit is near; queued again" in limited.said
    assert limited.said.count("goes on after step") == limited.restarts == 1


def test_a_job_that_is_warned_of_a_preemption_saves_and_is_queued_again(slurm, login, settings, tmp_path):
    place = [
        "hydra/launcher=slurm",
        "cluster.processes=1",
        "cluster.slurm.partition=low",
        "+cluster.slurm.options.nodelist=n1",
    ]
    assert slurm.run("scontrol", "update", "PartitionName=low", "GraceTime=60").code == 0
    try:
        life = Life(slurm, login, tmp_path / "runs", *settings, *STAGE, *place, "checkpoint.every_tokens=1M")
        life.until_it_steps()
        other = slurm.submit("--partition=high", "--nodelist=n1", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
        life.until(lambda: life.restarts == 1)
    finally:
        assert slurm.run("scontrol", "update", "PartitionName=low", "GraceTime=0").code == 0
    assert (life.folder / "LATEST").is_file()
    assert "preempted; queued again" in life.said
    slurm.cancel(life.job)
    slurm.wait(life.job)
    slurm.wait(other)


def test_a_run_that_never_comes_to_a_checkpoint_is_given_up_and_its_child_is_cancelled(
    slurm, login, settings, tmp_path
):
    sweep = ["+variant=chinese", "stage=basic,continual", f"paths.runs={tmp_path / 'runs'}"]
    fails = tmp_path / "python"  # one rank fails, and srun ends the other by TERM, as one does who ends a job
    fails.write_text('#!/bin/sh\n[ "$SLURM_PROCID" = 1 ] && exit 1\nexec sleep 60\n')
    fails.chmod(0o755)
    broken = [f"cluster.slurm.python={fails}", "cluster.slurm.max_failures=2"]
    done = login("train", "-m", *settings, *TWO_NODES, *sweep, *broken)
    assert done.code == 0, done.err
    records = {path.parts[-3].split("-")[0]: json.loads(path.read_text())
               for path in (tmp_path / "runs" / "demo").glob("*/job/job.json")}  # fmt: skip
    state = slurm.wait(records["basic"]["id"])
    assert (state["JobState"], state["Restarts"]) == ("FAILED", "1")
    assert slurm.wait(records["continual"]["id"])["JobState"] == "CANCELLED"
    log = next((tmp_path / "runs" / "demo").glob("basic-*/logs")) / f"{records['basic']['id']}.txt"
    said = log.read_text()
    assert "no new checkpoint in 2 lives in a row (cluster.slurm.max_failures=2): given up" in said


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=["USR1", "TERM"])
def test_a_rank_that_is_asked_before_it_trains_has_the_job_queued_again_though_srun_ends_the_other(
    slurm, login, settings, tmp_path, number
):
    """By TERM it is asked too where a node that SLURM waited for in vain ends the life before late."""
    life = Life(slurm, login, tmp_path / "runs", *settings, *STAGE, *TWO_NODES)

    def hear() -> list[int]:
        return [rank for rank in life.ranks() if is_among("SigCgt:", signal.SIGUSR1, rank)]

    life.until(lambda: len(hear()) == 2)
    os.kill(hear()[0], number)
    life.until(lambda: life.restarts == 1)
    if number == signal.SIGUSR1:
        assert "asked by USR1 to stop; queued again" in life.said
    slurm.cancel(life.job)
    slurm.wait(life.job)


def test_a_job_that_is_near_its_limit_before_it_trains_is_queued_again(slurm, login, settings, tmp_path):
    until_asked = '[ -n "$SLURM_RESTART_COUNT" ] || until [ -n "$asked" ]; do sleep 0.1; done'
    waits = f"cluster.slurm.setup=['{until_asked}']"
    life = Life(slurm, login, tmp_path / "runs", *settings, *STAGE, *TWO_NODES, waits, "cluster.slurm.python=/bin/true")
    slurm.wait(life.job, ["RUNNING"])
    slurm.cancel("--batch", "--signal=USR1", life.job)
    life.until(lambda: life.restarts == 1)
    assert "the time limit is near; queued again" in life.said
    slurm.cancel(life.job)
    slurm.wait(life.job)


def test_a_job_whose_parent_has_vanished_says_so_and_trains_nothing(slurm, login, settings, shell, tmp_path):
    place = [*settings, "+variant=chinese", "stages.basic.tokens=4K", f"paths.runs={tmp_path / 'runs'}"]
    assert shell("train", *place, "stage=basic").code == 0
    done = login(
        "train",
        *place,
        "stage=continual",
        "stages.basic.tokens=4K",
        *TWO_NODES,
        "+cluster.slurm.options.begin=now+1hour",
    )
    assert done.code == 0, done.err
    (folder,) = (tmp_path / "runs" / "demo").glob("continual-*")
    job = json.loads((folder / "job" / "job.json").read_text())["id"]
    next((tmp_path / "runs" / "demo").glob("basic-*/DONE")).unlink()
    released = slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    assert released.code == 0, released.err
    state = slurm.wait(job)
    assert (state["JobState"], state["ExitCode"]) == ("FAILED", "2:0")
    assert "the parent is not done" in (folder / "logs" / f"{job}.txt").read_text()
