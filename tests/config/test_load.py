"""A config written to a file is read back as it was."""

import pytest

from tinyllama.config.load import from_yaml, to_yaml
from tinyllama.errors import DamageError


@pytest.mark.parametrize(
    "overrides",
    [
        ("+variant=chinese", "stage=continual"),
        ("+scale=demo", "+variant=math_code", "stage=cooldown"),
        ("cluster=h100_x8", "checkpoint.milestones=[1.2T,5e9]", "trace=true", "stage=continual",
         "stage.fork_at_tokens=1.2T", "++stages.basic.tokens=1.4T"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_it_is_read_back_as_it_was(compose, tmp_path, overrides):
    for config in compose(*overrides):
        (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        assert from_yaml(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("content", ["seed: [", "seed: many\n", "seeds: 3\n", "", "- 3\n", "seed: 3\n"])
def test_a_file_that_is_no_config_is_damage(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(DamageError, match=r"config\.yaml cannot be read as the configuration of a run"):
        from_yaml(tmp_path / "config.yaml")


def test_a_config_that_is_missing_is_damage(tmp_path):
    with pytest.raises(DamageError, match=r"config\.yaml"):
        from_yaml(tmp_path / "config.yaml")
