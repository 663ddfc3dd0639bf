"""Trains the tree on this machine, parents before children: the launcher of `-m` unless another is chosen."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.tinyllama_launchers.family import completed, family_of
from tinyllama import signals
from tinyllama.checkpoint.layout import RunFolder, Status
from tinyllama.config.checks import processes_per_node
from tinyllama.errors import ConfigError, Stopped, TinyllamaError
from tinyllama.lineage.tracking import deliver_pending
from tinyllama.planning.tree import Node
from tinyllama.reporting.family import print_outcomes, status_of
from tinyllama.training.gate import require_ready
from tinyllama.world import visible_gpus

DONE, STOPPED = "done", "stopped in good order"


@dataclass
class LocalLauncherConfig:
    _target_: str = "hydra_plugins.tinyllama_launchers.local.LocalLauncher"
    jobs: int | None = None
    """Runs at a time; null: as many as the CPU cores serve, one on GPUs."""


ConfigStore.instance().store(group="hydra/launcher", name="local", node=LocalLauncherConfig, provider="tinyllama")


class LocalLauncher(Launcher):
    """Runs each node in a process of its own, forked from this one once the imports are paid."""

    def __init__(self, jobs: int | None = None):
        self._jobs = jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Nothing to keep: the jobs' overrides tell everything."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        if self._jobs is not None and self._jobs < 1:
            raise ConfigError(f"hydra.launcher.jobs={self._jobs} must be above 0")
        nodes = family_of(job_overrides)
        if nodes[-1].config.adopt is not None:
            raise ConfigError(
                f"adopt={nodes[-1].config.adopt} is the state of one run; train that run alone, without -m"
            )
        require_ready(nodes)
        crew = _Crew(nodes, self._jobs or _jobs_that_fit(nodes))
        outcomes = crew.run()
        print_outcomes(nodes, outcomes)
        _deliver(nodes)
        failed = [node.plan.name for node in nodes if outcomes[node.plan.digest] != DONE]
        if failed and crew.stopping:
            raise Stopped("stopped in good order; the same command goes on from there")
        if failed:
            raise TinyllamaError(f"{len(failed)} of {len(nodes)} runs did not come to their end: {', '.join(failed)}")
        return completed(job_overrides)


def _deliver(nodes: Sequence[Node]) -> None:
    """Give the tracking store what it has missed of these families."""
    for node in {node.config.family: node for node in nodes}.values():
        folder = RunFolder.of(node.config.paths.runs, node.plan)
        deliver_pending(node.config.tracking, Path(node.config.paths.runs), folder.outbox)


def _jobs_that_fit(nodes: Sequence[Node]) -> int:
    if visible_gpus():  # every run counts its GPUs from the first one, so two at a time would share them
        return 1
    processes = max(processes_per_node(node.config.cluster) for node in nodes)
    return max(1, _cores() // processes)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@dataclass
class _Crew:
    """Nodes of a tree at work, a few at a time. A node that fails holds up its descendants and nobody else."""

    nodes: Sequence[Node]
    jobs: int
    outcomes: dict[str, str] = field(default_factory=dict)
    running: dict[int, tuple[Node, BaseProcess]] = field(default_factory=dict)
    """By what tells of the process' end."""
    stopping: bool = False
    """Whether no more are started: somebody asked to stop."""

    def run(self) -> dict[str, str]:
        """What became of each node, by digest."""
        self.outcomes = {
            node.plan.digest: DONE for node in self.nodes if status_of(node) is Status.done or node.overrides is None
        }
        if len(self.outcomes) < len(self.nodes):
            import tinyllama.training.run  # noqa: F401  paid here once, so that the children need not
        with self._forwarding_signals():
            while self._start_who_can() or self.running:
                # Not for ever: a signal that comes just before the wait does not end it, and is heeded then.
                for sentinel in wait(list(self.running), timeout=0.5):
                    assert isinstance(sentinel, int)
                    node, process = self.running.pop(sentinel)
                    self.outcomes[node.plan.digest] = _outcome(process)
                    self.stopping |= self.outcomes[node.plan.digest] == STOPPED
        for node in self.nodes:
            if node.plan.digest not in self.outcomes:
                parent, cause = node.plan.parent, ""
                if parent is not None and self.outcomes.get(parent.digest) != DONE:
                    cause = f": {parent.name} is not done"
                assert cause or self.stopping
                self.outcomes[node.plan.digest] = f"not started{cause}"
        return self.outcomes

    def _start_who_can(self) -> int:
        """Start nodes whose parents are done, up to `jobs` in all; how many could be."""
        if self.stopping:
            return 0
        ready = [node for node in self.nodes if self._is_ready(node)][: self.jobs - len(self.running)]
        threads = max(1, _cores() // max(1, len(ready) + len(self.running)))
        for node in ready:
            with signals.held_back():
                if self.stopping:
                    break
                process = _start(node, threads, alone=self.jobs == 1)
                self.running[process.sentinel] = (node, process)
                if self.stopping:  # another thread got the signal, and held nothing back
                    process.terminate()
        return len(ready)

    def _is_ready(self, node: Node) -> bool:
        at_work = any(other is node for other, _ in self.running.values())
        if node.plan.digest in self.outcomes or at_work:
            return False
        return node.plan.parent is None or self.outcomes.get(node.plan.parent.digest) == DONE

    @contextmanager
    def _forwarding_signals(self) -> Iterator[None]:
        """What asks this process to stop asks the nodes at work, and they decide how."""

        def forward(number: int, frame: FrameType | None) -> None:
            self.stopping = True
            for _, process in self.running.values():
                if process.is_alive() and process.pid is not None:
                    os.kill(process.pid, number)  # a second time, if a terminal's interrupt has reached it: no matter

        before = {number: signal.signal(number, forward) for number in signals.ASKING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _start(node: Node, threads: int, alone: bool) -> BaseProcess:
    cluster = node.config.cluster
    if cluster.threads is None:
        cluster = replace(cluster, threads=max(1, threads // processes_per_node(cluster)))
    config = replace(node.config, cluster=cluster)
    args = (replace(node, config=config), alone, os.getpid())
    process = multiprocessing.get_context("fork").Process(target=_child, args=args)
    process.start()
    return process


def _child(node: Node, alone: bool, parent: int) -> None:
    signals.die_with(parent)
    signals.leave_at_once(quietly=True)
    signals.release()
    from tinyllama.train import start

    try:
        start(node.config, node.plan, node.variants, plain=not alone)
    except TinyllamaError as error:
        print(f"{node.plan.name}: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _outcome(process: BaseProcess) -> str:
    process.join()  # it has ended, but its exit code has not been fetched
    code = process.exitcode
    if code == 0:
        return DONE
    if code == Stopped.exit_code:
        return STOPPED
    assert code is not None
    return f"failed with exit code {code}" if code > 0 else f"killed by signal {-code}"
