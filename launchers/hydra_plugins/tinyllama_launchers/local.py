"""Trains the tree on this machine, parents before children: the launcher of `-m` unless another is chosen."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from types import FrameType

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.tinyllama_launchers.family import completed, family_of
from tinyllama.checkpoint.layout import Status
from tinyllama.errors import Stopped, TinyllamaError
from tinyllama.planning.tree import Node
from tinyllama.reporting.family import print_outcomes, status_of
from tinyllama.training.gate import require_corpora, require_one_machine, require_parent

DONE = "done"


@dataclass
class LocalLauncherConfig:
    _target_: str = "hydra_plugins.tinyllama_launchers.local.LocalLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="local", node=LocalLauncherConfig, provider="tinyllama")


class LocalLauncher(Launcher):
    """Runs one node after the other, each in a process of its own, forked from this one once the imports are paid."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Nothing to keep: the jobs' overrides tell everything."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        nodes = family_of(job_overrides)
        _check(nodes)
        outcomes: dict[str, str] = {}
        for node in nodes:
            outcomes[node.plan.digest] = _outcome(node, outcomes)
        print_outcomes(nodes, outcomes)
        failed = [node.plan.name for node in nodes if outcomes[node.plan.digest] != DONE]
        if failed:
            raise TinyllamaError(f"{len(failed)} of {len(nodes)} runs did not come to their end: {', '.join(failed)}")
        return completed(job_overrides)


def _check(nodes: Sequence[Node]) -> None:
    """Before the first step of the first node: whatever can be wrong with any of them.

    Raises:
        ConfigError: a corpus is not prepared, an ancestor is neither done nor asked for, or a node needs more machines.
    """
    asked = {node.plan.digest for node in nodes if node.overrides is not None}
    for node in nodes:
        if node.overrides is None or status_of(node) is Status.done:
            continue
        if node.plan.parent is not None and node.plan.parent.digest not in asked:
            require_parent(node.config, node.plan, node.overrides)
        require_corpora(node.plan, node.overrides)
        require_one_machine(node.config.cluster)


def _outcome(node: Node, outcomes: dict[str, str]) -> str:
    """Train a node unless it is done or cannot be; what became of it, in a word."""
    if status_of(node) is Status.done or node.overrides is None:
        return DONE
    parent = node.plan.parent
    if parent is not None and outcomes[parent.digest] != DONE:
        return f"not started: {parent.name} is not done"
    code = _train(node)
    if code == Stopped.exit_code:
        raise Stopped("stopped after a checkpoint; the same command goes on from there")
    return DONE if code == 0 else f"failed with exit code {code}"


def _train(node: Node) -> int:
    """Train a node in a child process; its exit code."""
    import tinyllama.training.run  # noqa: F401  paid here once, so that the children need not

    process = multiprocessing.get_context("fork").Process(target=_child, args=(node,), name=node.plan.name)
    process.start()
    with _forwarding_signals(process):
        process.join()
    assert process.exitcode is not None
    return process.exitcode if process.exitcode >= 0 else 128 - process.exitcode


def _child(node: Node) -> None:
    from tinyllama.train import start

    try:
        start(node.config, node.plan, node.variants)
    except TinyllamaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


@contextmanager
def _forwarding_signals(process: BaseProcess) -> Iterator[None]:
    """What asks this process to stop asks the child, and the child alone decides how."""

    def forward(number: int, frame: FrameType | None) -> None:
        # A terminal's interrupt reaches the child without our help.
        if number != signal.SIGINT and process.is_alive() and process.pid is not None:
            os.kill(process.pid, number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
