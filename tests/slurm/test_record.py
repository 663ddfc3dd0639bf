"""Which jobs are ours, by what was written down when they were submitted."""

import os
from dataclasses import replace

import pytest

from tinyllama.checkpoint.layout import RunFolder
from tinyllama.errors import DamageError
from tinyllama.slurm import client
from tinyllama.slurm.record import JobRecord, live_jobs, read_record, write_record

RECORD = JobRecord(
    "7", "basic-0123", "0123", ("standard", "中文"), None, "2026-01-01T00:00:00+00:00", ("a=1",), "/code"
)


def test_a_record_is_read_as_it_was_written(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert read_record(folder) is None
    write_record(folder, RECORD)
    assert read_record(folder) == RECORD


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": "7"}', '{"unknown": 1}'])
def test_a_record_that_is_no_record_is_damage_and_says_what_to_do(tmp_path, text):
    folder = RunFolder(tmp_path)
    write_record(folder, RECORD)
    folder.job_record.write_text(text)
    with pytest.raises(DamageError, match="job.json cannot be read .* remove it"):
        read_record(folder)


@pytest.mark.xdist_group("slurm")
def test_jobs_in_the_queue_are_found_by_their_runs_and_one_of_another_name_is_not_ours(slurm, tmp_path, monkeypatch):
    job = slurm.submit("--hold", "--job-name=basic-0123", f"--output={tmp_path}/%j.txt", "--wrap=true")
    monkeypatch.setenv("PATH", f"{slurm.commands(tmp_path / 'bin')}:{os.environ['PATH']}")
    folders = {name: RunFolder(tmp_path / name) for name in ("ours", "reused", "purged", "never")}
    write_record(folders["ours"], replace(RECORD, id=job))
    write_record(folders["reused"], replace(RECORD, id=job, name="basic-4567"))
    write_record(folders["purged"], replace(RECORD, id="999999"))
    assert live_jobs(folders) == {"ours": client.QueuedJob(job, "basic-0123", "PENDING", "JobHeldUser")}
    client.cancel([job])
    assert live_jobs(folders) == {}


def test_without_records_or_without_slurm_nothing_is_asked_and_nothing_lives(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # where there is no squeue to be called
    folder = RunFolder(tmp_path / "run")
    assert live_jobs({"run": folder}) == {}
    write_record(folder, RECORD)
    assert live_jobs({"run": folder}) == {}
