"""Commands as programs: what they say of themselves, what they make of their arguments."""

import sys

import pytest
from hydra.core.global_hydra import GlobalHydra

from tinyllama.config.app import family_command
from tinyllama.config.load import from_yaml, to_yaml


def test_help_names_the_groups_and_their_options(run):
    result = run("train", "--help")
    assert result.code == 0
    for word in ("data_mix: chinese, math_code, slimpajama", "stage: basic, continual, cooldown", "scale: demo"):
        assert word in result.out


def test_an_interpolation_on_the_command_line_reaches_the_ancestors_too(run, monkeypatch):
    monkeypatch.setenv("FEW", "1000")
    result = run("train", "stage=continual", "++stages.basic.tokens=${oc.env:FEW}")
    assert result.code == 2
    assert "stage.tokens=1000 is less than one batch" in result.err


def test_a_setting_of_an_ancestor_is_said_by_its_stage(compose):
    basic, continual = compose("stage=continual", "stage.tokens=30B", "++stages.basic.tokens=10B")
    assert (basic.stage.tokens, continual.stage.tokens) == (10_000_000_000, 30_000_000_000)


def test_a_setting_of_the_stage_is_not_one_of_its_ancestors(compose):
    basic, continual = compose("stage=continual", "stage.tokens=30B")
    assert (basic.stage.tokens, continual.stage.tokens) == (1_500_000_000_000, 30_000_000_000)


def test_a_stage_may_have_another_context_than_its_parent_over_the_same_prepared_samples(compose):
    def lengths(*overrides):
        return [(config.model.seq_len, config.packing.seq_len) for config in compose("+scale=demo", *overrides)]

    assert lengths("stage=continual", "stage.seq_len=512") == [(128, 128), (512, 128)]
    assert lengths("stage=cooldown", "++stages.continual.seq_len=64") == [(128, 128), (64, 128), (128, 128)]
    assert lengths("stage=continual", "model.seq_len=64", "packing.seq_len=128") == [(64, 128), (64, 128)]


def test_what_was_written_of_a_stage_of_its_own_context_is_read_back(compose, tmp_path):
    config = compose("+scale=demo", "stage=continual", "stage.seq_len=512")[-1]
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert from_yaml(tmp_path / "config.yaml") == config


def test_a_stage_of_ones_own_takes_its_place_in_the_path(compose):
    path = compose("stage=cooldown", "stage.name=anneal", "stage.parent=basic")
    assert [config.stage.name for config in path] == ["basic", "anneal"]


@pytest.mark.parametrize("command", ["verify", "prepare", "sample", "cancel"])
def test_a_command_that_sees_one_thing_at_a_time_refuses_a_sweep(run, command):
    result = run(command, "-m", "stage=basic,continual")
    assert result.code == 2
    assert "-m is for train, plan, evaluate and generate" in result.err


@pytest.mark.parametrize("chosen", [[], ["hydra/launcher=local"], ["hydra/launcher=basic"], ["cluster=slurm"]])
def test_a_cluster_may_bring_a_launcher_and_the_command_line_has_the_last_word(run, chosen, tmp_path):
    """Which one it is shows in what the launchers call their settings."""
    here = run("train", *chosen, "hydra.launcher.jobs=2", f"paths.data={tmp_path}")
    there = run("train", *chosen, "hydra.launcher.tasks=2", f"paths.data={tmp_path}")
    fits, other = (there, here) if chosen == ["cluster=slurm"] else (here, there)
    assert "is not prepared" in fits.err
    assert "there is no such setting" in other.err
    last = run("train", *chosen, "hydra/launcher=local", "hydra.launcher.jobs=2", f"paths.data={tmp_path}")
    assert "is not prepared" in last.err


@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_a_plan_ignores_the_launcher_that_its_overrides_choose(run, sweep):
    result = run("plan", *sweep, "stage=basic", "cluster=slurm", "hydra/launcher=slurm", "hydra.launcher.tasks=3")
    assert result.code == 0
    assert "basic-" in result.out


@pytest.mark.parametrize("minus_m", [[], ["-m"]])
def test_a_command_may_be_given_all_jobs_of_a_sweep_at_once(monkeypatch, minus_m):
    calls = []

    @family_command
    def main(jobs):
        calls.append([(config.variant, config.stage.name, overrides[0]) for config, overrides in jobs])

    def called(*arguments):
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *minus_m, *arguments])
        main()
        return calls.pop()

    standard, chinese = "+variant=standard", "+variant=chinese"
    assert called("+variant=standard,chinese", "stage=basic,cooldown", "hydra/launcher=slurm") == [
        ("standard", "basic", standard),
        ("standard", "cooldown", standard),
        ("chinese", "basic", chinese),
        ("chinese", "cooldown", chinese),
    ]
    assert called(chinese, "cluster=slurm") == [("chinese", "basic", chinese)]
    assert not calls
