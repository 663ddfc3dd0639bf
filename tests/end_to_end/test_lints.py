"""What the lints say when a person trains: errors before all else, warnings once nothing is in the way."""

import json

import pytest

SHORT = ["stage=basic", "stage.tokens=2K"]


def test_a_small_family_on_prepared_corpora_has_no_fault(small, run):
    result = run("plan", *small, "+variant=standard,math_code,chinese", "stage=basic,continual,cooldown", "format=json")
    assert result.code == 0
    assert {each["level"] for each in json.loads(result.out)["lints"]} <= {"note"}


def test_a_run_that_cannot_start_says_only_why(small, run, tmp_path):
    result = run("train", *small, "+variant=chinese", "stage=continual", "stage.tokens=9K")
    assert result.code == 2
    assert result.err.startswith("error: stage.parent=basic of stage=continual has not been trained")
    assert "python -m tinyllama.train" in result.err and "+variant=chinese stage=basic" in result.err
    assert not (tmp_path / "runs").exists()


def test_an_error_stops_a_sweep_before_it_trains_anything(small, run, tmp_path):
    sweep = ["+variant=chinese,standard", "stage=basic,continual"]
    result = run("train", "-m", *small, *sweep, "schedule.min_learning_rate=1")
    assert result.code == 2
    assert result.err.count("[floor_above_peak]") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_warning_is_shown_once_and_the_run_goes_on(small, shell, run):
    starved = [*small, *SHORT, "root_mix.weights.slimpajama=99.5", "+root_mix.weights.skypile=0.5"]
    result = shell("train", *starved, "cluster.processes=2")
    assert result.code == 0, result.err
    assert result.err.count("warning: root_mix.weights.skypile=0.5 is 0.16 samples of a batch of 32") == 1
    assert result.err.count("[starved_corpus]") == 1
    again = run("train", *starved, "cluster.processes=2", "lints.ignore=[nonsense]")
    assert again.code == 0 and "[starved_corpus]" not in again.err, "a run that is done is not looked at again"


@pytest.mark.slow
def test_an_error_that_is_ignored_does_not_stop_training(small, shell, run):
    flat = ["schedule.min_learning_rate=3e-3", *SHORT]
    assert run("train", *small, *flat).code == 2
    assert shell("train", *small, *flat, "lints.ignore=[floor_above_peak]").code == 0
