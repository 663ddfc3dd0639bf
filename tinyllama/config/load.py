"""From Hydra's raw config to RunConfig. Behind this package nobody sees a DictConfig."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tinyllama import units
from tinyllama.config.micro_batch import settle
from tinyllama.config.schema import RunConfig
from tinyllama.errors import ConfigError, DamageError


def load(raw: DictConfig) -> RunConfig:
    """The typed config, interpolations resolved, counts of tokens as integers, the model as long as its stage, the
    micro-batch a number.

    Raises:
        ConfigError: a setting has no value, or a count of tokens or the micro-batch cannot be read.
        OmegaConfBaseException: a setting that the schema lacks, of a wrong type, or an interpolation of nothing.
    """
    missing = sorted(OmegaConf.missing_keys(raw))
    if missing:
        raise ConfigError(f"{missing[0]} has no value; give it on the command line or in a file of conf/")
    config = OmegaConf.to_object(raw)
    assert isinstance(config, RunConfig)
    if _has_strangers(config):  # Hydra lets +NAME=VALUE slip past the schema; merged anew it is refused by name
        OmegaConf.merge(RunConfig, OmegaConf.to_container(raw))
    _read_tokens(config, "")
    return finish(config)


def section_value(name: str, value: Any) -> Any:
    """A field of RunConfig from its typed value, its counts of tokens read as `load` reads them.

    Raises:
        ConfigError: it has an attribute that the schema lacks, or a count of tokens cannot be read.
    """
    if _has_strangers(value):
        raise ConfigError(f"{name} has a setting that the schema lacks")
    return _with_tokens(name, value, name)


def finish(config: RunConfig) -> RunConfig:
    """Give the model the length of its stage and make the micro-batch a number, in place; both may be done already."""
    if config.stage.seq_len is not None:  # only now: packing.seq_len stays what model.seq_len was given as
        config.model.seq_len = config.stage.seq_len
    settle(config)
    return config


def typed_overrides(hydra_config: Any) -> list[str]:
    """The overrides of the command line, from what Hydra keeps of itself, as they were typed: nothing resolved."""
    texts = OmegaConf.to_container(hydra_config.hydra.overrides.task, resolve=False)
    assert isinstance(texts, list)
    return [str(text) for text in texts]


def to_yaml(config: RunConfig) -> str:
    """The config as people read it back, everything resolved."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def from_yaml(path: Path) -> RunConfig:
    """The config that `to_yaml` wrote to a file.

    Raises:
        DamageError: it is missing, or cannot be understood.
    """
    try:
        typed = OmegaConf.merge(RunConfig, OmegaConf.load(path))
        assert isinstance(typed, DictConfig)
        return load(typed)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException, ConfigError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DamageError(f"{path} cannot be read as the configuration of a run ({reason})") from error


def _has_strangers(node: Any) -> bool:
    """Whether something below has an attribute that its class does not declare."""
    if isinstance(node, dict):
        return any(_has_strangers(entry) for entry in node.values())
    if not is_dataclass(node):
        return False
    values = vars(node)
    return len(values) > len(fields(node)) or any(_has_strangers(entry) for entry in values.values())


def _read_tokens(node: Any, path: str) -> None:
    """Turn every field that is named a count of tokens into an int, in place."""
    for key in fields(node):
        value = getattr(node, key.name)
        read = _with_tokens(key.name, value, f"{path}{key.name}")
        if read is not value:
            setattr(node, key.name, read)


def _with_tokens(name: str, value: Any, setting: str) -> Any:
    """The value of a field; an int if it is a count of tokens."""
    if name == "tokens" or name.endswith("_tokens"):
        return None if value is None else units.tokens(value, setting)
    if name == "milestones":
        return [units.tokens(entry, setting) for entry in value]
    if is_dataclass(value):
        _read_tokens(value, f"{setting}.")
    elif isinstance(value, dict):
        for key, entry in value.items():
            if is_dataclass(entry):
                _read_tokens(entry, f"{setting}.{key}.")
    return value
