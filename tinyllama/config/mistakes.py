"""Hydra's and OmegaConf's complaints, said as ours: the setting, its value, the rule, the remedy."""

import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from tinyllama.config.schema import RunConfig
from tinyllama.errors import ConfigError, unknown

COMPLAINTS = (HydraException, OmegaConfBaseException)
"""What composing a config raises when a file or the command line is wrong."""


def explain(error: Exception, overrides: list[str]) -> ConfigError:
    """The message for a person, from an exception of COMPLAINTS and the command line's overrides."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return unknown(group, name, error.options)
    if isinstance(error, OverrideParseException):
        return ConfigError(f"{error.override} cannot be read as SETTING=VALUE; put quotes around special characters")
    if found := re.match(r"Could not override '([^']*)'\. No match in the defaults list", text):
        return ConfigError(
            f"{_said(found[1], overrides)}: nothing is chosen from the group {found[1]} yet; "
            f"write +{_said(found[1], overrides)}"
        )
    if found := re.match(r"Could not override '([^']*)'", text):
        return _no_such_setting(found[1], _said(found[1], overrides))
    if found := re.match(r"Error merging override (.*)", text):
        return ConfigError(f"{found[1]}: {_first_line(error.__cause__ or error)}")
    if found := re.match(r"Ambiguous value for argument '([^']*)'", text):
        return ConfigError(f"{found[1]} names several values; add -m to run each of them")
    if found := re.search(r"Key '([^']*)' (?:not in|is not in)", text):
        full_key = re.search(r"full_key: (\S+)", text)
        setting = full_key[1] if full_key else found[1]
        return _no_such_setting(setting, _said(setting, overrides))
    full_key = re.search(r"full_key: (\S+)", text)
    if full_key and (found := re.search(r"Interpolation key '([^']*)' not found", text)):
        return ConfigError(f"{full_key[1]} is taken from {found[1]}, which nobody sets; give ++{found[1]}=VALUE")
    return ConfigError(f"{full_key[1]}: {_first_line(error)}" if full_key else _first_line(error))


def setting_names(schema: Any = RunConfig, prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings; members of a dictionary stand as NAME."""
    for name, kind in get_type_hints(schema).items():
        yield prefix + name
        inner = get_args(kind)[-1] if get_args(kind) else kind
        if is_dataclass(inner):
            member = f"{prefix}{name}." + ("" if inner is kind else "NAME.")
            yield from setting_names(inner, member)


def _no_such_setting(setting: str, said: str) -> ConfigError:
    parent, _, last = setting.rpartition(".")
    if parent == "hydra.launcher":
        return ConfigError(f"{said}: there is no such setting; {_launchers_settings()}")
    siblings = [name for name in setting_names() if name.rpartition(".")[0] == parent]
    near = get_close_matches(last, [name.rpartition(".")[2] for name in siblings], n=3, cutoff=0.5)
    if near:
        remedy = f"did you mean {' or '.join(f'{parent}.{name}' if parent else name for name in near)}?"
    elif siblings:
        remedy = f"{parent or 'the top level'} has {', '.join(name.rpartition('.')[2] for name in siblings)}"
    else:
        remedy = f"write ++{said.lstrip('+')} to add it"
    return ConfigError(f"{said}: there is no such setting; {remedy}")


def _launchers_settings() -> str:
    """What each launcher can be told."""
    store = ConfigStore.instance()
    files = {file.removesuffix(".yaml"): store.load(f"hydra/launcher/{file}") for file in store.list("hydra/launcher")}
    ours = {name: file.node for name, file in files.items() if file.provider == "tinyllama" and name != "basic"}
    names = {name: [f"hydra.launcher.{key!s}" for key in node if key != "_target_"] for name, node in ours.items()}
    return "; ".join(f"hydra/launcher={name} has {', '.join(of)}" for name, of in sorted(names.items()) if of)


def _said(setting: str, overrides: list[str]) -> str:
    """The override as it was typed, for a message; the bare setting when a file said it."""
    return next((text for text in overrides if text.lstrip("+~").split("=")[0] == setting), setting)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
