"""Shows the tree instead of running it: the launcher behind `python -m tinyllama.plan`."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.tinyllama_launchers.family import completed, family_of
from tinyllama.config.schema import Format
from tinyllama.reporting.family import print_plan, print_plan_json


@dataclass
class PlanLauncherConfig:
    _target_: str = "hydra_plugins.tinyllama_launchers.plan.PlanLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="plan", node=PlanLauncherConfig, provider="tinyllama")


class PlanLauncher(Launcher):
    """Prints the family of the sweep."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Nothing to keep: the jobs' overrides tell everything."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        nodes = family_of(job_overrides)
        show = print_plan_json if nodes[-1].config.format is Format.json else print_plan
        show(nodes)
        return completed(job_overrides)
