"""From Hydra's raw config to RunConfig. The only user of omegaconf: behind this door nobody sees a DictConfig."""

from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tinyllama import units
from tinyllama.config.schema import RunConfig
from tinyllama.errors import ConfigError


def load(raw: DictConfig) -> RunConfig:
    """The typed config, interpolations resolved, counts of tokens as integers.

    Raises:
        ConfigError: a setting has no value, or a count of tokens cannot be read.
        OmegaConfBaseException: a setting that the schema lacks, of a wrong type, or an interpolation of nothing.
    """
    settings = OmegaConf.masked_copy(raw, [str(key) for key in raw if key != "hydra"])
    missing = sorted(OmegaConf.missing_keys(settings))
    if missing:
        raise ConfigError(f"{missing[0]} has no value; give it on the command line or in a file of conf/")
    # Merged anew because Hydra lets +NAME=VALUE slip past the schema.
    typed = OmegaConf.merge(RunConfig, OmegaConf.to_container(settings, resolve=True))
    config = OmegaConf.to_object(typed)
    assert isinstance(config, RunConfig)
    _read_tokens(config, "")
    return config


def typed_overrides(hydra_config: Any) -> list[str]:
    """The overrides of the command line, from what Hydra keeps of itself, as they were typed: nothing resolved."""
    texts = OmegaConf.to_container(hydra_config.hydra.overrides.task, resolve=False)
    assert isinstance(texts, list)
    return [str(text) for text in texts]


def to_yaml(config: RunConfig) -> str:
    """The config as people read it back, everything resolved."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _read_tokens(node: Any, path: str) -> None:
    """Turn every field that is named a count of tokens into an int, in place."""
    for key in fields(node):
        value, setting = getattr(node, key.name), f"{path}{key.name}"
        if key.name == "tokens" or key.name.endswith("_tokens"):
            if value is not None:
                setattr(node, key.name, units.tokens(value, setting))
        elif key.name == "milestones":
            node.milestones = [units.tokens(entry, setting) for entry in value]
        elif is_dataclass(value):
            _read_tokens(value, f"{setting}.")
        elif isinstance(value, dict):
            for name, entry in value.items():
                if is_dataclass(entry):
                    _read_tokens(entry, f"{setting}.{name}.")
