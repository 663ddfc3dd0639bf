"""profile=true on real runs: what it writes, and that it changes nothing else."""

import gzip
import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.end_to_end.conftest import SHARDED, lines, only_run, run_folder
from tinyllama.training.breakdown import OPERATORS, PARTS

pytestmark = pytest.mark.xdist_group("profile")  # one run for most of them

PROFILED = ["stage=basic", "trace=true", *SHARDED, "profile=true"]
"""16 steps of 4 micro-batches on each of two ranks, placed as the shared family's basic stage."""
OF_THE_MOMENT = {"time", "tokens_per_second", "data_wait", "mfu"}


def final_weights(folder: Path) -> dict:
    return load_file(max((folder / "checkpoints").iterdir()) / "weights.safetensors")


def journal(folder: Path) -> list[dict]:
    found = lines(folder / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in OF_THE_MOMENT} for line in found]


@pytest.fixture(scope="module")
def profiled(settings, shell, tmp_path_factory):
    runs = tmp_path_factory.mktemp("profiled") / "runs"
    result = shell("train", *settings, f"paths.runs={runs}", *PROFILED)
    assert result.code == 0, result.err
    return only_run(runs), result


def test_weights_samples_and_journal_are_those_of_a_run_without_it(profiled, family_runs):
    folder, _ = profiled
    plain = run_folder(family_runs, "basic", "standard")
    assert plain.name == folder.name
    assert not (plain / "profile").exists()
    assert (folder / "samples.jsonl").read_bytes() == (plain / "samples.jsonl").read_bytes()
    assert journal(folder) == journal(plain)
    mine, theirs = final_weights(folder), final_weights(plain)
    assert mine.keys() == theirs.keys()
    assert all(mine[name].tobytes() == theirs[name].tobytes() for name in mine)


def test_the_trace_of_the_main_rank_alone_holds_the_recorded_steps_and_their_parts(profiled):
    folder, result = profiled
    assert len(list((folder / "profile").glob("trace-*.json.gz"))) == 1
    assert result.err.count("on rank 0") == 1
    with gzip.open(folder / "profile" / "trace-step009.json.gz", "rt") as file:
        names = [event["name"] for event in json.load(file)["traceEvents"] if event.get("cat") == "user_annotation"]
    assert sum(name.startswith("ProfilerStep#") for name in names) == 3
    for part, each in {"data_wait": 1, "forward": 4, "backward": 4, "optimizer": 4, "logging": 1}.items():
        assert names.count(f"tinyllama/{part}") == 3 * each, part


def test_the_parts_add_up_to_the_step_and_the_table_is_printed_once(profiled):
    folder, result = profiled
    found = json.loads((folder / "profile" / "profile.json").read_text())
    assert (found["first_step"], found["last_step"], found["steps"]) == (9, 11, 3)
    parts = {part["name"]: part["host_seconds"] for part in found["parts"]}
    assert list(parts) == [*PARTS, "other"]
    assert sum(parts.values()) == pytest.approx(found["seconds"])
    assert all(parts[name] > 0 for name in ("data_wait", "forward", "backward", "optimizer", "logging"))
    assert 0 <= parts["other"] < found["seconds"] / 2
    assert len(found["operators"]) == OPERATORS
    assert any(each["name"] == "aten::mm" for each in found["operators"])
    assert sum(each["seconds"] for each in found["operators"]) <= found["seconds"]
    assert found["recorded_over_before"] == pytest.approx(found["seconds"] / found["seconds_before"])
    assert result.err.count((folder / "profile" / "table.txt").read_text()) == 1
    assert "profiler_st" not in result.err  # the recorder's own remarks


def test_a_short_stage_is_recorded_as_far_as_it_goes(small, shell, tmp_path):
    short = ["stage=basic", "stage.tokens=2K", "schedule.horizon_tokens=20K", "profile=true"]
    result = shell("train", *small, *short)
    assert result.code == 0, result.err
    found = json.loads((only_run(tmp_path / "runs") / "profile" / "profile.json").read_text())
    assert (found["first_step"], found["last_step"]) == (1, 2)
    assert found["recorded_over_before"] is None
    assert "the stage is short: only 0 steps before them" in result.err


def test_a_run_that_is_done_says_how_to_profile_it_all_the_same(profiled, settings, run):
    folder, _ = profiled
    before = (folder / "profile" / "profile.json").read_bytes()
    result = run("train", *settings, f"paths.runs={folder.parents[1]}", *PROFILED)
    assert result.code == 0
    assert "profile=true finds no step to record" in result.err
    assert (folder / "profile" / "profile.json").read_bytes() == before
