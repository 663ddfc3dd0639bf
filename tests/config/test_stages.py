"""Which stages others go on from, read from the files of the stage group."""

import shutil

import pytest
from hydra import initialize_config_dir

from tinyllama.config.app import compose_path
from tinyllama.config.location import conf_folder
from tinyllama.config.stages import continued_stages


@pytest.fixture
def conf(tmp_path):
    """A copy of conf/, to which stages of one's own can be added."""
    copy = tmp_path / "conf"
    shutil.copytree(conf_folder(), copy)
    return copy


def test_stages_that_another_names_as_its_parent_are_continued(compose):
    assert continued_stages() == {"basic", "continual"}


def test_a_stage_of_ones_own_continues_its_parent_too(conf):
    anneal = "name: anneal\nparent: cooldown\ntokens: 1T\nbatch_tokens: 1_835_008\n"
    (conf / "stage" / "anneal.yaml").write_text(anneal)
    (conf / "stage" / "twin.yaml").write_text("defaults: [anneal, _self_]\nname: twin\n")
    with initialize_config_dir(str(conf), version_base="1.3"):
        assert continued_stages() == {"basic", "continual", "cooldown"}
        twin = compose_path(["stage=twin", f"paths.data={conf}"])
        assert [config.stage.name for config in twin] == ["basic", "continual", "cooldown", "twin"]


def test_a_stage_that_has_settings_beside_its_own_continues_its_parent_too(conf):
    (conf / "stage" / "mine.yaml").write_text(
        "# @package _global_\n"
        "stage: {name: mine, parent: cooldown, tokens: 1T, batch_tokens: 1_835_008}\n"
        "checkpoint: {keep: 5}\n"
    )
    with initialize_config_dir(str(conf), version_base="1.3"):
        assert continued_stages() == {"basic", "continual", "cooldown"}
        mine = compose_path(["stage=mine", f"paths.data={conf}"])
        assert [config.stage.name for config in mine] == ["basic", "continual", "cooldown", "mine"]
        assert [config.checkpoint.keep for config in mine] == [2, 2, 2, 5]
