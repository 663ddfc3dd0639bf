"""Files of a line per step go on after an interruption without a repeated or missing step."""

import json

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
