"""Corpora prepared on a real cluster by the command that people give, twenty files shared among four tasks."""

import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Result
from tests.slurm.cluster import Slurm
from tinyllama.data.manifest import read_manifest
from tinyllama.data.tokenizer import train_tokenizer

FILES, TASKS = 20, 4

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]


def words(seed):
    return " ".join(random.Random(seed).choices(["river", "the", "of", "light", "under", "seven", "houses"], k=200))


def write_raw(folder):
    """Files of such a size that each is a part of its own."""
    folder.mkdir(parents=True)
    for number in range(FILES):
        rows = (json.dumps({"text": words(f"{number} {row}")}) + "\n" for row in range(270))
        (folder / f"{number:02d}.jsonl").write_text("".join(rows))
        assert (folder / f"{number:02d}.jsonl").stat().st_size > 1 << 18


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def until(happened: Callable[[], object], what: str) -> None:
    """Wait for something that happens soon, or fail."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        if happened():
            return
        time.sleep(0.02)
    pytest.fail(f"waited in vain until {what}")


@dataclass
class Preparation:
    """The raw files of a test, what is prepared from them below `data`, and the cluster."""

    slurm: Slurm
    login: Callable[..., Result]
    raw: Path
    data: Path
    tokenizer: Path

    @property
    def settings(self) -> list[str]:
        return [
            "corpus=skypile", "+scale=demo", "model.vocab_size=300", "tokenizer.vocab_size=300", "model.seq_len=32",
            "validation.fraction=0.1", f"tokenizer.path={self.tokenizer}", f"paths.data={self.data}",
            f"corpora.skypile.files=[{self.raw}/*.jsonl]", "tracking=none",
        ]  # fmt: skip

    def submit(self, *overrides: str, path: Path | None = None) -> Result:
        return self.login(
            "prepare", *self.settings, "hydra/launcher=slurm", f"hydra.launcher.tasks={TASKS}",
            "cluster.slurm.time_hours=0.1", "cluster.slurm.notice_seconds=60", "cluster.slurm.cpus_per_rank=1",
            *overrides, path=path,
        )  # fmt: skip

    def jobs(self) -> dict[str, str]:
        """Ids by name, of the last submission."""
        record = json.loads((self._folder / "job.json").read_text())
        return {name: job for job, name in record["jobs"].items()}

    def log(self, job: str) -> str:
        path = self._folder / "logs" / f"{job}.txt"
        return path.read_text() if path.exists() else ""

    def logs(self, array: str) -> str:
        """Of all tasks of an array."""
        return "".join(self.log(f"{array}_{task}") for task in range(TASKS))

    def ended(self, job: str) -> str:
        """How a job ended."""
        return self.slurm.wait(job)["JobState"]

    @property
    def corpus(self) -> Path:
        return self.data / "shards" / "demo-32" / "skypile"

    @property
    def _folder(self) -> Path:
        return self.data / "preparation" / "demo-32" / "skypile"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora") / "raw"
    write_raw(folder)
    return folder


@pytest.fixture(scope="module")
def preparation(slurm, login, raw, tmp_path_factory):
    """preparation(raw) -> a Preparation of these raw files in a folder of its own."""
    tokenizer = raw.parent / "demo.model"
    train_tokenizer(map(words, range(20)), tokenizer, 300)
    return lambda raw: Preparation(slurm, login, raw, tmp_path_factory.mktemp("data"), tokenizer)


@pytest.fixture(scope="module")
def local(preparation, raw, shell):
    """What the same command makes of the raw files on one machine."""
    here = preparation(raw)
    assert shell("prepare", *here.settings).code == 0
    return contents(here.corpus)


def processes_of(data: Path, share: int) -> list[int]:
    """Of a task at work, whatever node of the cluster it is on."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode().split("\0")
        except OSError:  # it has ended
            continue
        if "python" in command[0] and f"{data}/" in " ".join(command) and command[-3:-1] == [str(share), str(TASKS)]:
            found.append(int(path.parent.name))
    return found


def test_an_array_whose_tasks_are_killed_out_of_time_and_met_by_term_comes_to_the_same_corpus_byte_for_byte(
    preparation, raw, local, slurm
):
    here = preparation(raw)
    assert here.submit("+cluster.slurm.options.gres=gpu:4").code == 0  # all of a node's, so that each task has its own
    array, join = here.jobs()["prepare-skypile"], here.jobs()["join-skypile"]
    victims = {}

    def end_ranks(task, number):
        victims[task] = processes_of(here.data, task)
        for process in victims[task]:
            os.kill(process, number)

    ends = {
        1: lambda: end_ranks(1, signal.SIGKILL),
        2: lambda: slurm.cancel("--signal=USR1", "--batch", f"{array}_2"),  # as SLURM does ahead of the limit
        3: lambda: end_ranks(3, signal.SIGTERM),
    }

    def have_all_begun():
        """Ends each of them as soon as it has begun: by the time that the last has, the first might be done."""
        for task in [task for task in ends if "0 of 5" in here.log(f"{array}_{task}")]:
            ends.pop(task)()
        return not ends

    until(have_all_begun, "three tasks have begun")

    again = here.submit()
    assert again.code == 0
    assert f"job {array} (prepare-skypile, " in again.err
    assert "nothing was submitted" in again.err
    assert here.jobs() == {"prepare-skypile": array, "join-skypile": join}

    assert here.ended(join) == "COMPLETED"
    assert victims[1] and victims[3]
    assert "ended with exit code 137; queued again" in here.log(f"{array}_1")
    assert "queued again" in here.log(f"{array}_3")  # nobody has ended the job
    assert "the time limit is near; queued again" in here.log(f"{array}_2")
    assert all(f"life {life}" in here.log(f"{array}_{task}") for task in (1, 2, 3) for life in (1, 2))
    assert len(set(re.findall(r"on (n\d)\n", here.logs(array)))) >= 3
    assert "tokenising: 20 of 20" in here.log(join)
    assert "tokenising: 19 of 20" not in here.log(join)  # all was there to be joined
    assert contents(here.corpus) == local
    assert sorted(path.name for path in here.corpus.parent.iterdir()) == [
        ".skypile-parts", ".skypile.lock", "pictures", "skypile", here.corpus.readlink().name
    ]  # fmt: skip

    done = here.submit()
    assert (done.code, "already prepared" in done.err) == (0, True)
    assert here.jobs() == {"prepare-skypile": array, "join-skypile": join}


def test_damaged_files_end_the_array_and_once_they_are_mended_only_what_is_missing_is_made(preparation, raw, tmp_path):
    few = tmp_path / "raw"
    few.mkdir()
    for number in range(8):
        shutil.copy2(raw / f"{number:02d}.jsonl", few)
    here = preparation(few)
    damaged = [here.raw / name for name in ("03.jsonl", "06.jsonl", "07.jsonl")]
    for path in damaged:
        path.write_bytes(b"[" + path.read_bytes()[1:])
    assert here.submit().code == 0
    array, join = here.jobs()["prepare-skypile"], here.jobs()["join-skypile"]
    assert here.ended(join) == "CANCELLED"
    until(lambda: array not in {job.split("_")[0] for job in here.slurm.jobs()}, "the array has ended")
    assert all(f"{path}:1 is no JSON" in here.log(f"{array}_3") for path in (damaged[0], damaged[2]))  # of one task
    assert f"{damaged[1]}:1 is no JSON" in here.log(f"{array}_2")
    assert "queued again" not in here.log(f"{array}_3")
    assert not here.corpus.exists()

    for path in damaged:
        path.write_bytes(b"{" + path.read_bytes()[1:])
    assert here.submit().code == 0
    array, join = here.jobs()["prepare-skypile"], here.jobs()["join-skypile"]
    assert here.ended(join) == "COMPLETED"
    assert "1 of 2" in here.log(f"{array}_2")
    assert "0 of 2" not in here.log(f"{array}_2")
    assert not here.log(f"{array}_0")  # the other tasks had made theirs
    assert "tokenising: 8 of 8" in here.log(join)
    assert "tokenising: 7 of 8" not in here.log(join)
    manifest = read_manifest(here.corpus)
    assert manifest is not None
    assert manifest.documents == 8 * 270


def test_when_slurm_refuses_the_joining_job_the_array_does_not_stay(preparation, slurm, raw, tmp_path):
    here = preparation(raw)
    real = slurm.commands(tmp_path / "commands") / "sbatch"
    wrapper = tmp_path / "wrapped" / "sbatch"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/bash\n[[ "$*" == *join-* ]] && set -- --partition=nowhere "$@"\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    refused = here.submit("+cluster.slurm.options.hold=true", path=wrapper.parent)
    assert refused.code == 2
    assert "error: sbatch refuses join-skypile: invalid partition specified: nowhere" in refused.err
    until(lambda: not here.slurm.jobs(), "nothing is in the queue")
    assert not list(here.data.rglob("job.json"))
    assert not list(here.data.rglob("logs/*.txt"))
