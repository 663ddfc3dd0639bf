"""Following a real file as training writes it."""

import json
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as some

from tinyllama.lineage.tail import Tail, measurement_of


def write(path: Path, steps: range, **values: Any) -> None:
    with path.open("a") as file:
        for step in steps:
            line = {"step": step, "tokens": 8 * step, "time": 5.0 + step, "tokens_per_second": 10.0 * step}
            file.write(json.dumps(line | values) + "\n")


def steps_of(tail: Tail) -> list[int]:
    return [measurement.step for piece in tail.measurements() for measurement in piece]


def test_each_step_comes_once_as_the_file_grows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path, 0, 1)
    assert steps_of(tail) == []
    assert tail.first_milliseconds() is None
    write(path, range(1, 4))
    assert steps_of(tail) == [1, 2, 3]
    write(path, range(4, 6))
    assert (steps_of(tail), steps_of(tail)) == ([4, 5], [])


def test_a_line_that_is_being_written_waits_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 3))
    whole = path.read_text()
    path.write_text(whole[:-7])
    tail = Tail(path, 0, 1)
    assert steps_of(tail) == [1]
    with path.open("a") as file:
        file.write(whole[-7:])
    assert steps_of(tail) == [2]


def test_a_piece_that_could_not_be_delivered_comes_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 4))
    tail = Tail(path, 0, 1)
    assert [measurement.step for measurement in next(tail.measurements())] == [1, 2, 3]
    assert steps_of(tail) == [1, 2, 3]
    assert tail.typical_rate() == 25.0


def test_a_journal_that_a_resumed_run_has_cut_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 9))
    tail = Tail(path, 0, 1)
    assert steps_of(tail) == list(range(1, 9))
    aside = tmp_path / "aside"
    write(aside, range(1, 5))
    aside.replace(path)
    write(path, range(5, 12))
    assert steps_of(tail) == list(range(1, 12))


@settings(max_examples=30)
@given(first=some.integers(0, 3000), second=some.integers(0, 3000))
def test_whatever_is_there_at_once_it_comes_whole_and_in_order(tmp_path_factory: Any, first: int, second: int) -> None:
    path = tmp_path_factory.mktemp("tail") / "metrics.jsonl"
    tail = Tail(path, 0, 1)
    write(path, range(1, first + 1), padding={"x" * 400: 1})
    before = steps_of(tail)
    write(path, range(first + 1, first + second + 1), padding={"x" * 400: 1})
    assert before + steps_of(tail) == list(range(1, first + second + 1))


def test_steps_are_thinned_out_but_for_those_with_a_validation(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 8))
    write(path, range(8, 9), validation={"skypile": 3.0})
    write(path, range(9, 13))
    assert steps_of(Tail(path, 0, 5)) == [5, 8, 10]


def test_the_typical_rate_is_of_this_life_without_its_warm_up(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 101))
    tail = Tail(path, first_step=60, every_steps=7)
    assert tail.typical_rate() is None
    steps_of(tail)
    assert tail.typical_rate() == 10.0 * (66 + 100) / 2
    assert (tail.first_milliseconds(), tail.last_milliseconds) == (6_000, 105_000)


def test_a_measurement_has_the_numbers_by_flat_names_and_the_time_when_it_was_taken() -> None:
    line = {"step": 3, "time": 2.5, "loss": 1.5, "mfu": None, "validation": {"skypile": 2}, "corpus_samples": {"a": 7}}
    measurement = measurement_of(line)
    assert (measurement.step, measurement.milliseconds) == (3, 2500)
    assert measurement.values == {"loss": 1.5, "validation/skypile": 2.0, "corpus_samples/a": 7.0}
