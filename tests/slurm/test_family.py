"""The family on a real SLURM by the command a person types: submitted, failing, cancelled and submitted again."""

import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest

from tests.conftest import Result
from tests.slurm.cluster import Slurm, processes

VARIANTS = ("math_code", "chinese")
SWEEP = ["+variant=math_code,chinese", "stage=continual,basic"]  # the order of words is no order

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]


@dataclass
class Runs:
    """A runs folder of the small family, and the commands on it."""

    slurm: Slurm
    login: Callable[..., Result]
    folder: Path
    settings: list[str]

    def command(self, name: str, *arguments: str) -> Result:
        return self.login(name, *arguments, *self.settings, f"paths.runs={self.folder}")

    def submit(self, *sweep: str) -> Result:
        done = self.command("train", "-m", "hydra/launcher=slurm", "cluster.processes=1", *sweep)
        assert done.code == 0, done.err
        return done

    def run(self, stage: str, variant: str) -> Path:
        """The directory of a run, known by what was frozen for its job or by its plan."""
        for folder in (self.folder / "demo").glob(f"{stage}-*"):
            variants = json.loads((folder / "job" / "job.json").read_text())["variants"]
            if variant in variants:
                return folder
        raise AssertionError(f"no run of {stage} for {variant}")

    def jobs(self) -> dict[str, str]:
        """Ids of the jobs by the names of their runs."""
        records = (self.folder / "demo").glob("*/job/job.json")
        return {path.parents[1].name: json.loads(path.read_text())["id"] for path in records}

    def job(self, stage: str, variant: str) -> str:
        return self.jobs()[self.run(stage, variant).name]

    def states(self) -> dict[str, str]:
        """How each job ended, by the names of the runs."""
        return {name: self.slurm.wait(job)["JobState"] for name, job in self.jobs().items()}

    def logs(self) -> str:
        paths = sorted((self.folder / "demo").glob("*/logs/*.txt"))
        return "\n".join(f"== {path.parents[1].name} {path.name}\n{path.read_text()}" for path in paths)


def dependency(slurm: Slurm, job: str) -> str:
    """What it waits for, by SLURM's own word."""
    return slurm.state(job)["Dependency"].split("(")[0]


def assert_each_step_once(run: Path) -> None:
    plan = json.loads((run / "plan.json").read_text())
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, plan["steps"] + 1))
    assert lines[-1]["tokens"] == plan["end_tokens"]


def trained(run: Path) -> int:
    """Steps so far."""
    samples = run / "samples.jsonl"
    return samples.read_text().count("\n") if samples.exists() else 0


def latest(run: Path) -> str:
    return (run / "LATEST").read_text().strip()


@contextmanager
def frozen(run: Path) -> Iterator[None]:
    """Meanwhile the ranks of a run do not go on, on whatever node they are."""
    ranks = processes(run / "job")
    assert ranks
    for process in ranks:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in ranks:
            os.kill(process, signal.SIGCONT)


def until(happened: Callable[[], object], what: Callable[[], str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, what()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def family(slurm, login, settings, store_template, tmp_path_factory) -> tuple[Runs, dict[str, str], str]:
    """Two stages of two variants, trained by one submission; what each job waited for, and what the command said."""
    folder = tmp_path_factory.mktemp("family") / "runs"
    folder.mkdir()
    shutil.copy(store_template, folder / "mlflow.db")
    runs = Runs(slurm, login, folder, [*settings, "tracking=mlflow"])
    said = runs.submit(*SWEEP, "trace=true").err
    waited_for = {job: dependency(slurm, job) for job in runs.jobs().values()}
    assert set(runs.states().values()) == {"COMPLETED"}, runs.logs()
    return runs, waited_for, said


@pytest.fixture
def continued(family, slurm, login, tmp_path) -> Callable[[Sequence[str]], Runs]:
    """continued(settings) -> runs in which the family's basic stage is done and nothing else, without tracking."""

    def copy(settings: Sequence[str]) -> Runs:
        basic = family[0].run("basic", "chinese")
        shutil.copytree(basic, tmp_path / "runs" / "demo" / basic.name)
        shutil.rmtree(tmp_path / "runs" / "demo" / basic.name / "job")
        return Runs(slurm, login, tmp_path / "runs", [*settings, "tracking=none", "trace=true"])

    return copy


def test_one_command_submits_a_job_for_each_run_and_returns_before_they_are_done(family):
    runs, _, said = family
    assert Counter(name.split("-")[0] for name in runs.jobs()) == {"basic": 1, "continual": 2}
    assert len(set(runs.jobs().values())) == 3
    for name, job in runs.jobs().items():
        (line,) = [line for line in said.splitlines() if name in line.split()]
        assert job in line.split()
    assert not any(line.startswith("step ") for line in said.splitlines())


def test_each_job_waits_for_its_parents_success_and_starts_after_its_end(family):
    runs, waited_for, _ = family
    basic = runs.job("basic", "chinese")
    assert waited_for[basic] == "(null)" or waited_for[basic] == ""
    for variant in VARIANTS:
        continual = runs.job("continual", variant)
        assert waited_for[continual] == f"afterok:{basic}"
        assert runs.slurm.state(basic)["EndTime"] <= runs.slurm.state(continual)["StartTime"]


def test_each_job_has_run_once_on_a_node_and_not_where_it_was_submitted(family):
    runs, _, _ = family
    for job in runs.jobs().values():
        state = runs.slurm.state(job)
        assert state["BatchHost"] in runs.slurm.nodes
        assert state["Restarts"] == "0"
    for run in (runs.folder / "demo").glob("*-*"):
        assert (run / "DONE").is_file()
        assert_each_step_once(run)


def test_the_lineage_is_complete_in_mlflow(family):
    runs, _, _ = family
    client = mlflow.MlflowClient(f"sqlite:///{runs.folder}/mlflow.db")
    experiment = client.get_experiment_by_name("demo")
    recorded = {run.data.tags["digest"]: run for run in client.search_runs([experiment.experiment_id])}
    assert len(recorded) == 3
    assert {run.info.status for run in recorded.values()} == {"FINISHED"}
    (basic,) = [run for run in recorded.values() if run.data.tags["stage"] == "basic"]
    children = [run for run in recorded.values() if run.data.tags.get("parent_run_id") == basic.info.run_id]
    assert {run.data.tags["variants"] for run in children} == set(VARIANTS)
    assert {run.data.tags["stage"] for run in children} == {"continual"}
    history = client.get_metric_history(basic.info.run_id, "loss")
    metrics = [json.loads(line) for line in (runs.run("basic", "chinese") / "metrics.jsonl").read_text().splitlines()]
    assert [(entry.step, entry.value) for entry in history] == [(step["step"], step["loss"]) for step in metrics]


def test_the_same_command_finds_everything_done_and_submits_nothing(family):
    runs, _, _ = family
    jobs = runs.jobs()
    again = runs.submit(*SWEEP, "trace=true")
    assert again.err.count(" done ") == 3
    assert runs.slurm.jobs() == {}
    assert runs.jobs() == jobs


def test_a_stage_that_fails_cancels_its_descendants_and_its_cousins_finish(continued, settings, data, tmp_path):
    shutil.copytree(data, tmp_path / "data", symlinks=True)
    for shard in (tmp_path / "data" / "shards" / "demo-32" / "skypile" / "train").rglob("*.mds"):
        whole = bytearray(shard.read_bytes())
        whole[len(whole) // 2] ^= 0xFF  # of the same size: only reading it tells
        shard.write_bytes(whole)
    runs = continued([*settings, f"paths.data={tmp_path / 'data'}"])
    runs.submit("+variant=math_code,chinese", "stage=continual,cooldown")
    runs.states()

    def state(stage: str, variant: str) -> dict[str, str]:
        return runs.slurm.state(runs.job(stage, variant))

    assert len(runs.jobs()) == 4
    damaged = state("continual", "chinese")
    assert (damaged["JobState"], damaged["ExitCode"]) == ("FAILED", "3:0"), runs.logs()
    assert state("cooldown", "chinese")["JobState"] == "CANCELLED"
    assert state("continual", "math_code")["JobState"] == "COMPLETED", runs.logs()
    assert state("cooldown", "math_code")["JobState"] == "COMPLETED", runs.logs()
    log = runs.run("continual", "chinese") / "logs" / f"{runs.job('continual', 'chinese')}.0.txt"
    assert "skypile" in log.read_text()


def test_a_cancelled_family_keeps_what_it_has_and_a_second_submission_finishes_it(continued, settings):
    runs = continued([*settings, "stages.continual.batch_tokens=32", "cluster.micro_batch=1"])  # many short steps
    sweep = ["+variant=math_code", "stage=continual,cooldown"]
    runs.submit(*sweep)
    first, at_work = runs.jobs(), runs.run("continual", "math_code")
    until(lambda: trained(at_work) > 9, runs.logs)

    with frozen(at_work):  # it must not come to its end while the command starts
        cancelled = runs.command("cancel", "format=json")
    assert cancelled.code == 0, cancelled.err
    assert {job["id"] for job in json.loads(cancelled.out)["jobs"]} == set(first.values())
    assert "COMPLETED" not in runs.states().values()
    assert not (at_work / "DONE").exists()
    saved = json.loads((at_work / "checkpoints" / latest(at_work) / "manifest.json").read_text())
    assert saved["progress"]["step"] == trained(at_work), runs.logs()  # nothing that was trained is lost
    assert "No job" in runs.command("cancel").err

    before = (at_work / "samples.jsonl").read_text()
    runs.submit(*sweep)
    assert not set(runs.jobs().values()) & set(first.values())
    assert set(runs.states().values()) == {"COMPLETED"}, runs.logs()
    assert (at_work / "samples.jsonl").read_text().startswith(before)
    assert_each_step_once(at_work)
