"""Submits the tree to SLURM, or the preparation of corpora: `hydra/launcher=slurm`, with -m and without."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.tinyllama_launchers.family import completed, family_of
from tinyllama.config.app import compose_path, setting_of
from tinyllama.config.load import typed_overrides
from tinyllama.errors import ConfigError
from tinyllama.planning.tree import Node
from tinyllama.reporting.console import console, table
from tinyllama.reporting.family import indented_name, status_of
from tinyllama.slurm.submission import Place, live, require_slurm, submit_tree
from tinyllama.training.gate import require_ready


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
            self._train(job_overrides)
        return completed(job_overrides)

    def _train(self, job_overrides: Sequence[Sequence[str]]) -> None:
        nodes = [self._as_typed(node) for node in family_of(job_overrides)]
        if nodes[-1].config.adopt is not None:
            raise ConfigError(
                f"adopt={nodes[-1].config.adopt} takes a state in on this machine; train that run here, with "
                f"hydra/launcher=local"
            )
        require_slurm(nodes)
        require_ready(nodes, queued=live(nodes))
        places = submit_tree(nodes)
        _print(places)
        if any(place.job is not None for place in places):
            self._tell_how_to_follow(nodes)

    def _as_typed(self, node: Node) -> Node:
        """With the choice of the launcher, which Hydra keeps apart."""
        return node if node.overrides is None else replace(node, overrides=(*node.overrides, *self._chosen))

    def _tell_how_to_follow(self, nodes: Sequence[Node]) -> None:
        print(f"How they stand: {shlex.join(['python', '-m', 'tinyllama.plan', *self._typed])}", file=sys.stderr)
        for family, runs in dict.fromkeys((node.config.family, node.config.paths.runs) for node in nodes):
            stop = ["python", "-m", "tinyllama.cancel", f"family={family}", f"paths.runs={runs}"]
            print(f"To stop them: {shlex.join(stop)}", file=sys.stderr)


def _print(places: Sequence[Place]) -> None:
    """On standard error."""
    rows = table("run", "variants", "job", "depends on", "log")
    for place in places:
        log = place.folder.logs / f"{place.job}.txt"
        rows.add_row(
            indented_name(place.node),
            ", ".join(place.node.variants),
            _job(place),
            place.depends_on or "",
            "" if place.job is None else str(log),
        )
    console(sys.stderr).print(rows)


def _job(place: Place) -> str:
    if place.job is None:
        return status_of(place.node).value
    return place.job if place.new else f"{place.job}, queued before"
