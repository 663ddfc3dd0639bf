"""Gives a command all jobs of a sweep at once: the launcher behind tinyllama.config.app.family_command."""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import unwrap
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.tinyllama_launchers._results import completed
from tinyllama.config.app import compose_path


@dataclass
class TogetherLauncherConfig:
    _target_: str = "hydra_plugins.tinyllama_launchers.together.TogetherLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="together", node=TogetherLauncherConfig, provider="tinyllama")


class TogetherLauncher(Launcher):
    """Calls the command's body once, with the config and the overrides of each job."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._main: Any = unwrap(task_function)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        # Hydra imports this module whenever a command starts.
        from hydra_plugins.tinyllama_launchers._family import with_ancestors_settings

        jobs = with_ancestors_settings(job_overrides)
        self._main([(compose_path(overrides)[-1], overrides) for overrides in jobs])
        return completed(job_overrides)
