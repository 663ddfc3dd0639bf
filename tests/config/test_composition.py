"""Composing quickly gives what Hydra gives: the same config, or the same complaint."""

import shutil
from copy import deepcopy
from itertools import product

import hydra
import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra

from tinyllama.config import composition
from tinyllama.config.composition import compose as compose_config
from tinyllama.config.load import load
from tinyllama.config.location import conf_folder

DEMO = ("+scale=demo", "+variant=chinese", "stage=continual")
VALUES = {
    "a number": ["seed=5"],
    "a number in quotes": ["seed='5'"],
    "another type": ["seed=abc"],
    "null where none may be": ["seed=null"],
    "null": ["+variant=chinese", "prompt=null", "lints.max_epochs=null"],
    "an empty text": ["family="],
    "a text with a comma": ["family='a, b'"],
    "a text of another alphabet": ['prompt="山，水"'],
    "a name that others take": [*DEMO, "data_mix.name=mine"],
    "a count of tokens": [*DEMO, "stage.tokens=1.5T", "checkpoint.milestones=[1.2T,5e9]", "at_tokens=1K"],
    "a count that is none": ["stage.tokens=many"],
    "an interpolation": ["stage.tokens=${stage.batch_tokens}", "schedule.horizon_tokens=${stage.tokens}"],
    "a relative interpolation": ["stage.tokens=${.batch_tokens}"],
    "the environment": ["stage.tokens=${oc.env:FEW}"],
    "an interpolation of nothing": ["variant=${nothing}"],
    "a setting that interpolations read": [*DEMO, "++stages.continual.tokens=80K", "paths.data=/elsewhere"],
    "a setting beside what interpolations read": ["model.seq_len=64", "lints.max_epochs=9", "validation.fraction=0.5"],
    "an interpolation that is replaced": [*DEMO, "stage.tokens=1M", "packing.seq_len=64"],
    "a stage by its name": ["stage=continual", "++stages.basic.tokens=10B", "stages.basic.batch_tokens=1M"],
    "what is set twice": ["seed=5", "paths.runs=a", "seed=6"],
    "a new key": ["+data_mix.weights.skypile=3", "++data_mix.weights.starcoder=3"],
    "a new key that is there": ["+seed=3"],
    "a forced key that no schema has": ["++optimizer.nothing=1"],
    "a new section": ["+nothing.deep=1"],
    "a key that is not there": ["data_mix.weights.skypile=3"],
    "a misspelt key": ["stage.toens=3"],
    "a misspelt option": ["stage=contnual"],
    "what cannot be read": ["[=]"],
    "a deleted key": ["+variant=chinese", "~data_mix.weights.slimpajama", "~corpora.skypile"],
    "a deleted key of another value": ["~data_mix.weights.slimpajama=99"],
    "a deleted section": ["~stages"],
    "a deleted choice": ["~tracking"],
    "a list": ["optimizer.betas=[0.9,0.99]", "corpora.slimpajama.files=[a,b/*.x]", "corpus=[slimpajama,skypile]"],
    "a number for a list": ["optimizer.betas=0.9"],
    "a dictionary": ["cluster.slurm.options={qos: high}", "data_mix.weights={slimpajama: 1, skypile: 3}"],
    "a new corpus": ["+corpora.mine={name: mine, tokens: 1B, files: [x]}"],
    "a dictionary for a group": ["stage={name: mine, tokens: 1M, batch_tokens: 4096}"],
    "options of groups": ["data_mix@root_mix=chinese", "data_mix=math_code", "+corpus@corpora.mine=skypile"],
    "a choice that brings a launcher": ["cluster=slurm", "cluster.slurm.time_hours=3", "cluster.micro_batch=auto"],
    "a micro-batch that is none": ["cluster.micro_batch=x"],
    "a setting of Hydra": ["hydra.job.name=mine", "seed=5"],
    "several values": ["seed=1,2"],
    "a value that is missing": ["seed=???"],
    "an enumeration": ["format=json", "cluster.precision=bf16", "action=show"],
    "a longer context": [*DEMO, "stage.seq_len=512"],
}
QUICK = (
    "a number", "another type", "the environment", "a setting that interpolations read", "a deleted key",
    "options of groups", "a setting of Hydra",
)  # fmt: skip
LEFT_TO_HYDRA = {
    "an interpolation", "a relative interpolation", "the environment", "a new section", "a deleted section",
    "a setting of Hydra",
}  # fmt: skip
"""Those without a mistake that the quick way does not try."""


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))


def outcome(make, overrides):
    try:
        return make(list(overrides))
    except Exception as error:
        return type(error), str(error), repr(error.__cause__)


def by_hydra(overrides):
    return load(hydra.compose("config", overrides=overrides))


@pytest.fixture
def composed(monkeypatch):
    """How often Hydra has composed."""
    calls, original = [], ConfigLoaderImpl.load_configuration

    def counted(self, *arguments, **how):
        calls.append(how)
        return original(self, *arguments, **how)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    return calls


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in VALUES]
)
def test_overrides_give_what_hydra_gives(compose, composed, monkeypatch, name):
    monkeypatch.setenv("FEW", "2_000_000")
    made, calls = outcome(compose_config, VALUES[name]), len(composed)
    assert made == outcome(by_hydra, VALUES[name])
    assert bool(calls) == (name in LEFT_TO_HYDRA or isinstance(made, tuple)), "only what is unusual or wrong"


@pytest.mark.slow
def test_each_option_of_each_group_gives_what_hydra_gives(compose):
    compose_config([])
    groups = {path.name for path in conf_folder().iterdir() if path.is_dir()} - {"variant", "scale"}
    for group in sorted(groups):
        for option in options(group):
            overrides = [*DEMO[:2], f"{group}={option}"]
            assert outcome(compose_config, overrides) == outcome(by_hydra, overrides), overrides
    for variant, stage in product(options("variant"), options("stage")):
        overrides = [f"+variant={variant}", f"stage={stage}", "seed=7"]
        assert outcome(compose_config, overrides) == outcome(by_hydra, overrides), overrides


@pytest.mark.slow
def test_no_choice_of_groups_is_left_to_hydra(compose, composed):
    for cluster, variant in product(options("cluster"), options("variant")):
        compose_config([f"cluster={cluster}", f"+variant={variant}"])
    assert not composed


def test_a_config_belongs_to_its_caller(compose):
    overrides = [*DEMO, "seed=8", "stage.tokens=${stage.batch_tokens}"]
    for each in (overrides[:4], overrides):
        first = compose_config(each)
        before = deepcopy(first)
        first.data_mix.weights["slimpajama"] = 7.0
        first.corpora.clear()
        first.stage.tokens = 1
        assert compose_config(each) == before


@pytest.mark.slow
def test_each_folder_of_configs_counts_for_itself(tmp_path):
    def seed():
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(tmp_path / "conf"), version_base="1.3"):
            return compose_config(["stage=basic"]).seed, compose_config(["stage=cooldown"]).seed

    shutil.copytree(conf_folder(), tmp_path / "conf")
    file = tmp_path / "conf" / "config.yaml"
    assert seed() == (3407, 3407)
    file.write_text(file.read_text().replace("seed: 3407", "seed: 3408"))
    assert seed() == (3408, 3408)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        assert compose_config(["stage=basic"]).seed == 3407


def test_a_folder_that_is_searched_besides_brings_its_options(tmp_path, run):
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "mine.yaml").write_text("name: mine\ntokens: 1T\nbatch_tokens: 1_835_008\n")
    arguments = ["stage=mine", "format=json", f"paths.runs={tmp_path}", f"paths.data={tmp_path}"]
    assert run("plan", "--config-dir", str(tmp_path), *arguments).code == 0
    result = run("plan", *arguments)
    assert result.code == 2
    assert "stage=mine" in result.err


@pytest.mark.slow
def test_the_environment_is_read_each_time(tmp_path, monkeypatch):
    shutil.copytree(conf_folder(), tmp_path / "conf")
    file = tmp_path / "conf" / "config.yaml"
    file.write_text(file.read_text().replace("runs: runs", "runs: ${oc.env:SCRATCH,here}/runs"))
    with initialize_config_dir(str(tmp_path / "conf"), version_base="1.3"):
        assert compose_config(["seed=3"]).paths.runs == "here/runs"
        monkeypatch.setenv("SCRATCH", "/scratch")
        assert compose_config(["seed=3"]).paths.runs == "/scratch/runs"
        assert compose_config(["seed=3"]) == by_hydra(["seed=3"])


@pytest.mark.slow
def test_a_file_that_speaks_of_hydra_is_left_to_it(tmp_path, composed):
    """Its settings may be wrong, which only Hydra sees."""
    shutil.copytree(conf_folder(), tmp_path / "conf")
    stage = "# @package _global_\nstage: {{name: {0}, tokens: 1T, batch_tokens: 1_835_008}}\nhydra: {1}\n"
    (tmp_path / "conf" / "stage" / "right.yaml").write_text(stage.format("right", "{verbose: true}"))
    (tmp_path / "conf" / "stage" / "wrong.yaml").write_text(stage.format("wrong", "{verbosity: true}"))
    with initialize_config_dir(str(tmp_path / "conf"), version_base="1.3"):
        compose_config([])
        for option in ("right", "wrong"):
            overrides = [f"stage={option}"]
            assert outcome(compose_config, overrides) == outcome(by_hydra, overrides)


@pytest.mark.parametrize("weights", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_many_nodes_are_composed_by_hydra_as_rarely_as_two(run, tmp_path, composed, weights):
    def plan(weights):
        composed.clear()
        sweep = [f"data_mix.weights.skypile=range(1,{weights + 1})", "stage=continual,cooldown"]
        result = run("plan", *DEMO[:2], *sweep, "format=json", f"paths.data={tmp_path}", f"paths.runs={tmp_path}")
        assert result.code == 0 and result.out.count('"parent":') == 2 * weights + 1
        return len(composed)

    assert plan(1) == plan(weights) == 1, "Hydra composes the command line, as it starts"


def test_caches_are_bounded():
    cache = composition._Bounded(2)
    for key in (1, 2, 1, 3):
        cache.get(key, lambda: object())
    assert 1 in cache and 3 in cache and 2 not in cache
