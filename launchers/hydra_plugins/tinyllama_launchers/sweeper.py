"""Hands a sweep's jobs to the launcher as one family: a tree can only be seen whole."""

from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser


@dataclass
class FamilySweeperConfig:
    _target_: str = "hydra_plugins.tinyllama_launchers.sweeper.FamilySweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


ConfigStore.instance().store(group="hydra/sweeper", name="family", node=FamilySweeperConfig, provider="tinyllama")


class FamilySweeper(BasicSweeper):
    """Hydra's basic sweeper without its folder of records and without composing every job once more than we do."""

    def sweep(self, arguments: list[str]) -> Any:
        assert self.launcher is not None and self.hydra_context is not None
        overrides = OverridesParser.create(config_loader=self.hydra_context.config_loader).parse_overrides(arguments)
        (jobs,) = self.split_arguments(overrides, max_batch_size=None)
        return [self.launcher.launch(jobs, initial_job_idx=0)]
