"""Shows the tree instead of running it: the launcher behind `python -m tinyllama.plan`."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.tinyllama_launchers._results import completed


@dataclass
class PlanLauncherConfig:
    _target_: str = "hydra_plugins.tinyllama_launchers.plan.PlanLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="plan", node=PlanLauncherConfig, provider="tinyllama")


class PlanLauncher(Launcher):
    """Prints the family of the sweep."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Nothing to keep: the jobs' overrides tell everything."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        # Hydra imports this module whenever a command starts.
        from hydra_plugins.tinyllama_launchers._plan import show_family

        show_family(job_overrides)
        return completed(job_overrides)
