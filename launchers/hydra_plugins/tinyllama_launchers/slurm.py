"""Submits the tree to SLURM, or the preparation of corpora: `hydra/launcher=slurm`, with -m and without."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.tinyllama_launchers._results import completed
from tinyllama.config.app import compose_path, setting_of
from tinyllama.config.load import typed_overrides


@dataclass
class SlurmLauncherConfig:
    _target_: str = "hydra_plugins.tinyllama_launchers.slurm.SlurmLauncher"
    tasks: int = 16
    """Among how many tasks the preparation of a corpus is shared, at most."""


ConfigStore.instance().store(group="hydra/launcher", name="slurm", node=SlurmLauncherConfig, provider="tinyllama")


class SlurmLauncher(Launcher):
    """Queues what was asked for and returns; what runs is the code as it is now."""

    def __init__(self, tasks: int = 16):
        self._tasks = tasks

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._command = getattr(task_function, "__name__", "")
        self._typed = typed_overrides(config)
        """As it was typed: a sweep is still whole."""
        self._chosen = [text for text in config.hydra.overrides.hydra if setting_of(text) == "hydra/launcher"]

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        if self._command == "prepare":
            from tinyllama.slurm.preparation import submit_preparation  # reads corpora: not light

            for overrides in job_overrides:
                submit_preparation(compose_path(overrides)[-1], overrides, self._tasks)
        else:
            # Hydra imports this module whenever a command starts.
            from hydra_plugins.tinyllama_launchers._slurm import submit_family

            submit_family(job_overrides, self._typed, self._chosen)
        return completed(job_overrides)
