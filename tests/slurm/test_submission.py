"""A family's jobs in a real queue: each run once, all or none, by the command a person types.

Jobs are held, so that what is in the queue stays there to be looked at.
"""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT, Result
from tests.forked import Forked
from tests.slurm.cluster import Slurm

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

HELD = ["cluster.processes=1", "hydra/launcher=slurm", "+cluster.slurm.options.hold=true"]
TREE = ["+variant=chinese,standard", "stage=basic,continual"]


@dataclass
class Family:
    """A runs folder on the cluster."""

    slurm: Slurm
    runs: Path
    settings: list[str]
    run: Callable[..., Result]
    on_login: Callable[..., Forked]

    def command(self, name: str, *arguments: str) -> Result:
        """In this process, which takes a third of the time."""
        return self.run(name, *arguments[:1], *self.settings, *arguments[1:])

    def train(self, *arguments: str) -> Result:
        return self.command("train", arguments[0], *HELD, *arguments[1:])

    def start_train(self, *arguments: str, path: Path | None = None) -> Forked:
        """In a process of its own, as from a terminal."""
        return self.on_login("train", "-m", *self.settings, *HELD, *arguments, path=path)

    def records(self) -> dict[str, dict]:
        """Of what was submitted, by stage and variants: "continual chinese"."""
        found = [json.loads(path.read_text()) for path in self.runs.glob("*/*/job/job.json")]
        return {" ".join([record["name"].split("-")[0], *record["variants"]]): record for record in found}

    def left(self) -> list[str]:
        """Runs of which something stands."""
        return [path.name for path in self.runs.glob("*/*-*")]

    def finish(self, name: str) -> None:
        """Make a run look done, without training it."""
        (self.runs / "demo" / name / "DONE").write_text('{"validation": {}}')


@pytest.fixture
def family(slurm, small, tmp_path, run, on_login, monkeypatch):
    monkeypatch.setenv("PATH", f"{slurm.commands(tmp_path / 'commands')}:{os.environ['PATH']}")
    yield Family(slurm, tmp_path / "runs", small, run, on_login)
    slurm.clear()


@pytest.fixture
def sbatch(tmp_path, family):
    """sbatch("script") -> a folder for the login host's path in which sbatch is a script around the real one."""
    real = shutil.which("sbatch")  # the cluster's

    def written(script: str) -> Path:
        path = tmp_path / "wrapped" / "sbatch"
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\nsbatch={real}\n{script}\n")
        path.chmod(0o755)
        return path.parent

    return written


def test_a_tree_is_queued_parents_first_and_a_second_time_nothing_is(family):
    first = family.train("-m", *TREE)
    assert first.code == 0, first.err
    records = family.records()
    assert set(records) == {"basic chinese standard", "continual chinese", "continual standard"}
    basic = records.pop("basic chinese standard")
    assert family.slurm.state(basic["id"])["Dependency"] == "(null)"
    for record in records.values():
        state = family.slurm.state(record["id"])
        assert record["depends_on"] == basic["id"]
        assert state["Dependency"].startswith(f"afterok:{basic['id']}")
        assert state["JobName"] == record["name"]
        assert re.search(rf"{record['name']} .*{record['id']} +{basic['id']} .*/logs/{record['id']}.txt", first.err)
    assert "python -m tinyllama.plan" in first.err
    assert f"python -m tinyllama.cancel family=demo paths.runs={family.runs}" in first.err

    queued = family.slurm.jobs()
    second = family.train("-m", *TREE)
    assert second.code == 0, second.err
    assert family.slurm.jobs() == queued
    assert f"{basic['id']}, queued before" in second.err


def test_a_parent_that_was_queued_before_is_depended_upon_and_one_that_is_not_is_refused(family):
    alone = family.train("+variant=chinese", "stage=continual")
    assert alone.code == 2
    assert "stage.parent=basic of stage=continual has not been trained" in alone.err
    assert "hydra/launcher=slurm" in alone.err
    assert family.left() == []

    assert family.train("+variant=standard", "stage=basic").code == 0
    later = family.train("+variant=chinese", "stage=continual")
    assert later.code == 0, later.err
    records = family.records()
    assert records["continual chinese"]["depends_on"] == records["basic standard"]["id"]
    assert "hydra/launcher=slurm" in records["continual chinese"]["overrides"]
    assert len(family.slurm.jobs()) == 2
    basic = records["basic standard"]
    assert re.search(rf"{basic['name']} .* {basic['id']}, queued before", later.err)


def test_what_is_done_is_not_queued_and_nothing_waits_for_it(family):
    assert family.train("stage=basic").code == 0
    basic = family.records()["basic slimpajama"]
    family.slurm.cancel(basic["id"])
    family.finish(basic["name"])
    result = family.train("-m", *TREE)
    assert result.code == 0, result.err
    assert {record["depends_on"] for record in family.records().values()} == {None}
    assert len(family.slurm.jobs()) == 2
    assert re.search(rf"{basic['name']} .* done", result.err)


def test_a_job_id_that_slurm_has_forgotten_or_given_to_another_job_is_not_believed(family):
    assert family.train("stage=basic").code == 0
    record = family.records()["basic slimpajama"]
    family.slurm.cancel(record["id"])
    other = family.slurm.submit("--hold", "--job-name=other", f"--output={family.runs}/%j.txt", "--wrap=true")
    path = family.runs / "demo" / record["name"] / "job" / "job.json"
    for forgotten in ("999999", other):
        path.write_text(json.dumps({**record, "id": forgotten}))
        refused = family.train("+variant=chinese", "stage=continual")
        assert refused.code == 2
        assert "has not been trained" in refused.err
        assert family.train("stage=basic").code == 0
        renewed = family.records()["basic slimpajama"]["id"]
        assert renewed not in (forgotten, record["id"])
        family.slurm.cancel(renewed)


@pytest.mark.parametrize(
    "setting, reason",
    [
        ("cluster.slurm.partition=nowhere", "invalid partition specified: nowhere"),
        ("cluster.slurm.account=nobody", "account 'nobody' does not exist here"),
        ("cluster.nodes=8", "Node count specification invalid"),
    ],
)
def test_what_slurm_refuses_is_one_message_with_its_reason_and_leaves_nothing(family, setting, reason):
    refused = family.train("-m", *TREE, setting)
    assert refused.code == 2
    assert len(refused.err.splitlines()) == 1, refused.err
    assert reason in refused.err
    assert setting in refused.err
    assert (family.slurm.jobs(), family.left()) == ({}, [])


def test_a_refusal_in_the_middle_of_the_tree_takes_back_what_was_queued(family, sbatch, tmp_path):
    """From the second job on the real sbatch is asked for what there is not."""
    path = sbatch(f'grep -q afterok "$2" && set -- --account=nobody "$@" || touch {tmp_path}/queued\nexec $sbatch "$@"')
    refused = family.start_train(*TREE, path=path)
    err = refused.communicate()[1]
    assert refused.returncode == 2
    assert "account 'nobody' does not exist here" in err
    assert (tmp_path / "queued").exists()
    assert (family.slurm.jobs(), family.left()) == ({}, [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_submission_that_is_interrupted_takes_back_what_was_queued(family, sbatch, tmp_path, number):
    process = family.start_train(
        *TREE, path=sbatch(f'$sbatch "$@"; code=$?\ntouch {tmp_path}/queued\nsleep 1\nexit $code')
    )
    while not (tmp_path / "queued").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    os.killpg(process.pid, number)  # as a terminal does
    err = process.communicate()[1]
    assert "what had been submitted is cancelled" in err, err
    assert (family.slurm.jobs(), family.left()) == ({}, [])


def test_two_submissions_at_the_same_time_queue_each_run_once(family):
    both = [family.start_train(*TREE) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(family.slurm.jobs()) == 3
    assert sorted(text.count("queued before") for text in said) == [0, 3]


def test_a_cluster_brings_its_launcher_along(family):
    result = family.command("train", "cluster=slurm", "stage=basic", "+cluster.slurm.options.hold=true")
    assert result.code == 0, result.err
    assert len(family.slurm.jobs()) == 1


def test_a_plan_with_the_same_overrides_only_plans_and_shows_the_job(family):
    assert family.train("stage=basic").code == 0
    (job,) = family.slurm.jobs()
    told = family.command("plan", "-m", *TREE, *HELD, "hydra.launcher.tasks=4", "format=json")
    assert told.code == 0, told.err
    assert [node["job"] and node["job"]["id"] for node in json.loads(told.out)["nodes"]] == [job, None, None]
    assert set(family.slurm.jobs()) == {job}


@pytest.mark.parametrize(
    "setting, words",
    [
        ("cluster.processes=null", ["cluster.processes=null", "ranks per node"]),
        ("adopt=somewhere", ["adopt=somewhere", "hydra/launcher=local"]),
    ],
)
def test_what_cannot_be_submitted_is_refused_before_anything_is(family, setting, words):
    refused = family.train("stage=basic", setting)
    assert refused.code == 2
    for word in words:
        assert word in refused.err
    assert (family.slurm.jobs(), family.left()) == ({}, [])


def test_other_commands_run_here_whatever_launcher_is_chosen(family):
    told = family.command("verify", "stage=basic", "cluster=slurm")
    assert told.code == 2
    assert "has not been trained" in told.err


def test_cancelling_ends_all_jobs_of_a_family_and_of_no_other(family):
    assert family.train("-m", *TREE).code == 0
    assert family.train("stage=basic", "family=other").code == 0
    other = next(
        record["id"] for record in family.records().values() if (family.runs / "other" / record["name"]).exists()
    )
    told = family.command("cancel", "format=json")
    assert told.code == 0, told.err
    document = json.loads(told.out)
    assert document["family"] == "demo"
    assert [(job["state"], job["action"]) for job in document["jobs"]] == [("PENDING", "cancelled")] * 3
    assert set(family.slurm.jobs()) == {other}
    again = family.command("cancel")
    assert (again.code, again.out) == (0, "")
    assert "No job of family=demo" in again.err


def test_a_job_that_was_asked_to_leave_is_not_taken_for_one_that_goes_on(family):
    command = [*(setting for setting in HELD if "hold" not in setting), "stage=basic", "cluster.slurm.setup=[sleep 60]"]
    assert family.command("train", *command).code == 0
    (job,) = family.slurm.jobs()
    family.slurm.wait(job, ["RUNNING"])
    told = json.loads(family.command("cancel", "format=json").out)
    assert [(each["id"], each["action"]) for each in told["jobs"]] == [(job, "asked to save and leave")]
    early = family.command("train", *command)
    assert early.code == 2
    assert f"job {job} of basic-" in early.err
    assert "is not gone yet" in early.err
    family.slurm.cancel("--signal=KILL", "--full", job)
    family.slurm.wait(job)
    assert family.command("train", *command).code == 0
    (again,) = set(family.slurm.jobs()) - {job}
    family.slurm.wait(again, ["RUNNING"])
    family.slurm.cancel("--signal=KILL", "--full", again)


def test_edits_of_code_and_conf_after_the_submission_do_not_change_what_runs(family, tmp_path):
    checkout = tmp_path / "checkout"
    for part in ("tinyllama", "conf", "launchers"):
        shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
    submitted = family.slurm.run(
        "python", "-m", "tinyllama.train", *family.settings, *HELD, "stage=basic", "stages.basic.tokens=4K",
        cwd=checkout, env={"PYTHONPATH": str(checkout)},
    )  # fmt: skip
    assert submitted.code == 0, submitted.err
    (job,) = family.slurm.jobs()
    (checkout / "tinyllama" / "train.py").write_text("raise SystemExit('edited')\n")
    seed = checkout / "conf" / "config.yaml"
    seed.write_text(seed.read_text().replace("seed: 3407", "seed: 1"))
    family.slurm.run("scontrol", "release", job)
    state = family.slurm.wait(job)
    (run,) = (family.runs / "demo").glob("basic-*")
    assert state["JobState"] == "COMPLETED", "".join(log.read_text() for log in (run / "logs").iterdir())
    assert (run / "DONE").is_file()
