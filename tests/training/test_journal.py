"""Files of a line per step go on after an interruption without a repeated or missing step."""

import json
from pathlib import Path

import pytest

from tinyllama.errors import DamageError
from tinyllama.training.journal import open_journal, write_line


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_lines_beyond_the_last_checkpoint_are_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with open_journal(path, 0) as file:
        for step in range(1, 8):
            write_line(file, {"step": step})
    with open_journal(path, 4) as file:
        write_line(file, {"step": 5})
    assert steps(path) == [1, 2, 3, 4, 5]


def test_a_line_that_was_half_written_when_the_run_died_is_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step":1}\n{"step":2}\n{"ste')
    with open_journal(path, 2) as file:
        write_line(file, {"step": 3})
    assert steps(path) == [1, 2, 3]


def test_every_line_is_on_disk_before_the_next_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with open_journal(path, 0) as file:
        write_line(file, {"step": 1})
        assert steps(path) == [1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_disk_that_does_not_take_a_line_ends_the_run_with_what_to_do():
    file = Path("/dev/full").open("a")  # noqa: SIM115  # closed when the line fails
    with pytest.raises(DamageError, match="full could not be written: No space left on device in /dev, where .* free"):
        write_line(file, {"step": 1})
    file.close()
