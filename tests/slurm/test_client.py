"""What a real queue answers, and what is made of it."""

import os

import pytest

from tinyllama.errors import ConfigError
from tinyllama.slurm import client

pytestmark = pytest.mark.xdist_group("slurm")


@pytest.fixture
def here(slurm, tmp_path, monkeypatch):
    """The queue's commands are on this process's path; not on that of the login host, which has its own."""
    path = os.environ["PATH"]
    monkeypatch.setattr(type(slurm), "env", property(lambda self, env=slurm.env: env))
    monkeypatch.setenv("PATH", f"{slurm.commands(tmp_path / 'bin')}:{path}")
    return slurm


@pytest.fixture
def script(tmp_path):
    """script("partition=low", body="...") -> a file for sbatch."""

    def written(*options, body="sleep 300"):
        path = tmp_path / "script.sh"
        asked = ["job-name=a|name", f"output={tmp_path}/%j.txt", *options]
        path.write_text("#!/bin/bash\n" + "".join(f"#SBATCH --{option}\n" for option in asked) + body + "\n")
        return path

    return written


@pytest.mark.slow
def test_a_job_is_found_in_the_queue_under_its_id_with_its_name_and_why_it_waits(here, script):
    job = client.submit(script("hold"))
    assert client.queue([job]) == {job: client.QueuedJob(job, "a|name", "PENDING", "JobHeldUser")}
    client.cancel([job])
    assert client.queue([job]) == {}


def test_ids_that_slurm_does_not_know_are_absent_alone_and_among_others(here, script):
    job = client.submit(script("hold"))
    assert client.queue(["999999"]) == {}
    assert client.queue(["999999", "999998"]) == {}
    assert set(client.queue(["999999", job, "999998"])) == {job}
    client.cancel([job, "999999"])
    assert client.queue([job]) == {}


def test_an_array_is_one_job(here, script):
    job = client.submit(script("hold", "array=0-3"))
    assert set(client.queue([job])) == {job}
    client.cancel([job])


@pytest.mark.parametrize(
    "option, words",
    [
        ("partition=nowhere", ["invalid partition specified: nowhere", "cluster.slurm.partition=nowhere"]),
        ("account=nobody", ["account 'nobody' does not exist here", "cluster.slurm.account=nobody"]),
        ("nodes=99", ["requested", "cluster.nodes=99"]),
        ("mem=99T", ["emory", "cluster.slurm.memory_gib (--mem=99T)"]),
        ("time=99-0", ["ime limit", "cluster.slurm.time_hours (--time=99-0)"]),
        ("constraint=big", ["feature", "cluster.slurm.constraint=big"]),
        ("ntasks-per-node=99", ["requested", "cluster.processes (--ntasks-per-node=99)"]),
        ("gpus-per-node=99", ["Requested node configuration is not available", "cluster.slurm.gpus_per_node=99"]),
        ("no-such-option", ["no-such-option", "cluster.slurm.options"]),
    ],
)
def test_what_sbatch_refuses_is_told_in_its_words_with_the_setting_it_is_about(here, script, option, words):
    with pytest.raises(ConfigError) as refusal:
        client.submit(script(option))
    assert str(refusal.value).startswith("sbatch refuses a|name: ")
    assert "sbatch: error" not in str(refusal.value)
    for word in words:
        assert word in str(refusal.value)


def test_the_environment_does_not_overrule_the_script(here, script, monkeypatch):
    """sbatch takes SBATCH_... for more than what its script says, and a job's own SLURM_... for options."""
    for name, value in {"SBATCH_PARTITION": "nowhere", "SBATCH_TIMELIMIT": "99-0", "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "99")
    job = client.submit(script("hold", "partition=low", "time=5"))
    state = here.state(job)
    client.cancel([job])
    assert (state["Partition"], state["TimeLimit"], state["NumTasks"]) == ("low", "00:05:00", "1")


def test_without_sbatch_the_message_says_where_to_go(monkeypatch, tmp_path, script):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="needs sbatch, and this machine has none.*login node.*hydra/launcher=local"):
        client.submit(script())


def test_a_queue_that_does_not_answer_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ConfigError, match="Unable to contact slurm controller"):
        client.queue(["1"])


def test_stopping_reaches_the_script_before_the_ranks(here, script, tmp_path):
    """The script must know that it is not to queue the job again before the ranks leave."""
    said = tmp_path / "said"
    body = f"""
trap 'echo script >> {said}' TERM
srun bash -c "trap 'echo rank >> {said}; exit 0' TERM; echo ready >> {said}; while :; do sleep 0.1; done" &
srun=$!
while kill -0 $srun 2> /dev/null; do wait $srun; done
"""
    job = client.submit(script(body=body))
    here.wait(job, ["RUNNING"])
    while not (said.is_file() and "ready" in said.read_text()):
        assert here.state(job)["JobState"] == "RUNNING"
    client.stop([job])
    assert here.wait(job)["JobState"] == "COMPLETED"
    assert said.read_text().split() == ["ready", "script", "rank"]
