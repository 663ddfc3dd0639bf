"""Trains the tree on this machine, parents before children: the launcher of `-m` unless another is chosen."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.tinyllama_launchers._results import completed
from tinyllama.config.app import LOCAL


@dataclass
class LocalLauncherConfig:
    _target_: str = "hydra_plugins.tinyllama_launchers.local.LocalLauncher"
    jobs: int | None = None
    """Runs at a time, at most; null: as many as there are GPUs for, or CPU cores."""


for name in LOCAL:  # not chosen by config.yaml, which would overrule a cluster that brings its launcher along
    ConfigStore.instance().store(group="hydra/launcher", name=name, node=LocalLauncherConfig, provider="tinyllama")


class LocalLauncher(Launcher):
    """Runs each node in a process of its own, forked from this one once the imports are paid."""

    def __init__(self, jobs: int | None = None):
        self._jobs = jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Nothing to keep: the jobs' overrides tell everything."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        # Hydra imports this module whenever a command starts.
        from hydra_plugins.tinyllama_launchers._local import train_family

        train_family(job_overrides, self._jobs)
        return completed(job_overrides)
