"""Which corpora a command line names."""

from collections.abc import Sequence

from tinyllama.config.app import setting_of
from tinyllama.config.schema import CorpusConfig, RunConfig
from tinyllama.errors import unknown


def chosen_corpora(config: RunConfig, overrides: Sequence[str]) -> list[CorpusConfig]:
    """Those that `corpus=...` names; all configured ones, which mixtures bring along, when it is not given.

    Raises:
        ConfigError: a name that is not configured.
    """
    choices = [override.split("=", 1)[1].strip("[]") for override in overrides if setting_of(override) == "corpus"]
    names = [name.strip() for name in choices[-1].split(",")] if choices else list(config.corpora)
    for name in names:
        if name not in config.corpora:
            raise unknown("corpus", name, config.corpora)
    return [config.corpora[name] for name in names]
