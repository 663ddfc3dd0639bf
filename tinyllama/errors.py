"""Errors that a person caused or must act on. Every command turns them into one message and their exit code."""

from collections.abc import Iterable
from difflib import get_close_matches


class TinyllamaError(Exception):
    """A message for people, shown without a stack trace."""

    exit_code = 1


class ConfigError(TinyllamaError):
    """The configuration or the input is wrong: setting, value, rule, remedy."""

    exit_code = 2


class DamageError(TinyllamaError):
    """Something found on disk is damaged, or differs from what it should be."""

    exit_code = 3


class DriftError(TinyllamaError):
    """What is declared differs from what stands on disk under the same name."""

    exit_code = 3


class Stopped(TinyllamaError):
    """The run stopped in good order after a checkpoint; the same command goes on from there."""

    exit_code = 75


class StoppedForNow(Stopped):
    """It was USR1 that asked, which batch systems send ahead of a time limit: the run is to be started again."""


def unknown(setting: str, value: object, valid: Iterable[str]) -> ConfigError:
    """The error for a name that is in no table: names the nearest valid ones."""
    names = sorted(valid)
    near = get_close_matches(str(value), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"valid: {', '.join(names)}"
    return ConfigError(f"{setting}={value} is not known; {hint}")
