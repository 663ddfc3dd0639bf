"""Trains the tree on this machine, parents before children."""

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from types import FrameType

from hydra_plugins.tinyllama_launchers._crew import Crew, Share, cores, gpu_names, gpus_wanted
from hydra_plugins.tinyllama_launchers._family import family_of
from tinyllama import signals
from tinyllama.checkpoint.layout import RunFolder, Status
from tinyllama.config.checks import processes_per_node
from tinyllama.errors import ConfigError, DamageError, Stopped, TinyllamaError
from tinyllama.lineage.tracking import deliver_pending
from tinyllama.planning.tree import Node
from tinyllama.reporting.family import End, Outcome, print_outcomes, status_of
from tinyllama.training.gate import require_ready


def train_family(sweep: Sequence[Sequence[str]], jobs: int | None) -> None:
    """Train the nodes of a sweep, each in a process of its own, forked from this one once the imports are paid.

    Args:
        sweep: the overrides of each job.
        jobs: runs at a time, at most; None: as many as there are GPUs for, or CPU cores.

    Raises:
        TinyllamaError: a job's settings are wrong, or a run did not end.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"hydra.launcher.jobs={jobs} must be above 0")
    nodes = family_of(sweep)
    if nodes[-1].config.adopt is not None:
        raise ConfigError(f"adopt={nodes[-1].config.adopt} is the state of one run; train that run alone, without -m")
    todo = [node for node in nodes if node.overrides is not None and status_of(node) is not Status.done]
    gpus = gpu_names()
    _require_gpus(todo, gpus)
    require_ready(nodes)
    if todo:
        import tinyllama.training.run  # noqa: F401  paid here once, so that the children need not
    crew = Crew(nodes, _train, jobs_at_a_time(todo, gpus, jobs), gpus)
    crew.heed_signals()
    outcomes = crew.run()
    print_outcomes(nodes, outcomes)
    failure = _failure(nodes, outcomes, crew.stopping)
    _deliver(nodes, failure)
    if failure is not None:
        raise failure


def jobs_at_a_time(nodes: Sequence[Node], gpus: Sequence[str], limit: int | None = None) -> int:
    """How many of these nodes may be at work at once.

    Args:
        limit: what a person has said. It may be more than the CPU cores serve, but never more than the GPUs do.
    """
    if gpus:
        used = accumulate(sorted(gpus_wanted(node, gpus) for node in nodes))
        fitting = sum(count <= len(gpus) for count in used)
        return max(1, min(fitting, limit or fitting))
    ranks = max((processes_per_node(node.config.cluster) for node in nodes), default=1)
    return max(1, min(len(nodes), limit or cores() // ranks))


def _require_gpus(nodes: Sequence[Node], gpus: Sequence[str]) -> None:
    for node in nodes:
        if (wanted := gpus_wanted(node, gpus)) > len(gpus):
            raise ConfigError(
                f"cluster.processes={wanted} of stage={node.plan.stage} (cluster={node.config.cluster.name}) needs a "
                f"GPU for each rank, and {len(gpus)} can be used here ({', '.join(gpus)}); "
                f"set cluster.processes={len(gpus)} or less, or CUDA_VISIBLE_DEVICES= to train on the CPU"
            )


def _train(node: Node, share: Share) -> None:
    from tinyllama.train import start

    cluster = node.config.cluster
    if cluster.threads is None:
        cluster = replace(cluster, threads=max(1, share.threads // processes_per_node(cluster)))
    start(replace(node.config, cluster=cluster), node.plan, node.variants, plain=not share.alone)


def _failure(nodes: Sequence[Node], outcomes: Mapping[str, Outcome], stopping: bool) -> TinyllamaError | None:
    """What is wrong with the family as a whole."""
    unfinished = [node.plan.name for node in nodes if outcomes[node.plan.digest].end is not End.done]
    if not unfinished:
        return None
    if stopping:
        return Stopped("stopped in good order; the same command goes on from there")
    failure = TinyllamaError(
        f"{len(unfinished)} of {len(nodes)} runs did not come to their end: {', '.join(unfinished)}"
    )
    codes = {outcome.exit_code for outcome in outcomes.values() if outcome.end is End.failed}
    if codes in ({ConfigError.exit_code}, {DamageError.exit_code}):
        (failure.exit_code,) = codes
    return failure


def _deliver(nodes: Sequence[Node], failure: TinyllamaError | None) -> None:
    """Give the tracking store what it has missed of these families.

    Whoever asks to stop need not wait for it: what is missing then is delivered another time.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        if failure is not None:
            os.write(2, f"error: {failure}\n".encode())
        os._exit(0 if failure is None else failure.exit_code)

    for number in signals.ASKING:
        signal.signal(number, leave)
    for node in {node.config.family: node for node in nodes}.values():
        folder = RunFolder.of(node.config.paths.runs, node.plan)
        deliver_pending(node.config.tracking, Path(node.config.paths.runs), folder.outbox)
    signals.ignore()
