"""metrics.jsonl as arrays."""

import json
import math

import pytest

from tinyllama.reporting.pages import journal
from tinyllama.reporting.pages.journal import read_journal


def line(step: int, **more: object) -> str:
    return json.dumps({"step": step, "tokens": 64 * step, "loss": 1 / step, **more}) + "\n"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_a_last_line_that_is_still_being_written_is_left_out_and_is_no_fault(path):
    path.write_text(line(1) + line(2) + line(3)[:20])
    steps, remarks, unreadable = read_journal(path)
    assert (steps.step.tolist(), remarks, unreadable) == ([1, 2], (), 0)


def test_lines_that_cannot_be_read_are_counted_and_the_others_stay(path):
    path.write_text(line(1) + "\0" * 9 + "\n" + line(3) + '{"step": 4\n' + '"a word"\n' + line(5))
    steps, _, unreadable = read_journal(path)
    assert (steps.step.tolist(), steps.tokens.tolist(), unreadable) == ([1, 3, 5], [64, 192, 320], 3)
    assert steps.value("loss").tolist() == [1.0, 1 / 3, 0.2]


@pytest.mark.parametrize("content", [None, "", '{"step": 1'])
def test_a_run_that_has_taken_no_step_has_none(path, content):
    if content is not None:
        path.write_text(content)
    steps, remarks, unreadable = read_journal(path)
    assert (len(steps), remarks, unreadable) == (0, (), 0)
    assert steps.last("loss") is None
    assert steps.group("validation") == {}


def test_every_number_of_every_group_is_there_and_what_was_not_measured_is_not_a_number(path):
    path.write_text(line(1, corpus_samples={"a": 1}) + line(2, loss=None, validation={"b.c": 2.5}, skipped="why"))
    steps, remarks, _ = read_journal(path)
    assert steps.value("loss")[0] == 1
    assert math.isnan(steps.value("loss")[1])
    assert {name: values.tolist()[1] for name, values in steps.group("validation").items()} == {"b.c": 2.5}
    assert steps.group("corpus_samples")["a"][0] == 1
    ((step, tokens, skipped, why, loss),) = [vars(each).values() for each in remarks]
    assert (step, tokens, skipped, why, loss) == (2, 128, True, "why", None)


def test_fields_that_come_late_or_change_between_whole_and_broken_numbers_are_read_in_any_block(path, monkeypatch):
    monkeypatch.setattr(journal, "_BLOCK_BYTES", 4096)
    texts = [line(step, mfu=None, corpus_losses={"a": 1}) for step in range(1, 301)]
    texts += [line(step, mfu=0.5, corpus_losses={"a": 1.5, "b": 2}, validation={"a": 3}) for step in range(301, 601)]
    path.write_text("".join(texts))
    steps, _, unreadable = read_journal(path)
    assert (steps.step.tolist(), unreadable) == (list(range(1, 601)), 0)
    assert steps.group("corpus_losses")["a"].tolist() == [1.0] * 300 + [1.5] * 300
    assert steps.group("corpus_losses")["b"].tolist()[299:301] == pytest.approx([math.nan, 2.0], nan_ok=True)
    assert steps.last("validation/a") == 3.0
    assert steps.last("mfu") == 0.5
