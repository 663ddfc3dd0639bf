"""Train a stage of a variant: `python -m tinyllama.train +variant=chinese stage=continual`; with -m a family."""
# ruff: noqa: E402

from tinyllama import signals
from tinyllama.world import World

if __name__ == "__main__":  # before the imports, which take a while
    signals.leave_at_once(quietly=not World.from_environment().is_main)

import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tinyllama.config.app import command, compose_path
from tinyllama.config.schema import RunConfig

if TYPE_CHECKING:
    from tinyllama.planning.plan import RunPlan
    from tinyllama.planning.tree import Job


@partial(command, sweeps=True, launchers=True)
def main(config: RunConfig, overrides: list[str]) -> None:
    # Not needed by --cfg, nor where a launcher trains.
    from tinyllama.config.checks import check_path
    from tinyllama.config.stages import continued_stages
    from tinyllama.data.inventory import take_inventory
    from tinyllama.planning.plan import make_plan
    from tinyllama.planning.tree import Job

    path = compose_path(overrides)
    check_path(path)
    plan = make_plan(path, take_inventory(path))
    train(Job(tuple(overrides), path, plan, plan.stage in continued_stages()), (path[-1].variant,))


def train(job: "Job", variants: tuple[str, ...]) -> None:
    """Train a stage from wherever it stands to its end, unless it is done, once all that it needs is there.

    Raises:
        TinyllamaError: it cannot be, or not to its end; Stopped if somebody asked for that.
    """
    from tinyllama.checkpoint.layout import RunFolder, Status
    from tinyllama.lineage.tracking import deliver_pending
    from tinyllama.planning.tree import grow
    from tinyllama.training.adoption import adopt
    from tinyllama.training.gate import require_ready

    config, plan = job.path[-1], job.plan
    folder = RunFolder.of(config.paths.runs, plan)
    if folder.status is Status.done:
        if World.from_environment().is_main:
            print(f"{plan.name} [{config.variant}] is done: {folder.path}", file=sys.stderr)
            if config.profile:
                print(
                    "profile=true finds no step to record there; paths.runs=ELSEWHERE trains the same again, "
                    "branch=true with another setting a run beside it",
                    file=sys.stderr,
                )
            _log_plainly()
            deliver_pending(config.tracking, Path(config.paths.runs), folder.outbox)
        return
    require_ready(grow([job]))
    if config.adopt is not None:
        adopt(config, plan)
    start(config, plan, variants)


def start(config: RunConfig, plan: "RunPlan", variants: tuple[str, ...], plain: bool = False) -> None:
    """Train a stage on this machine, in ranks that are given or started here; `plain` lines where others print too."""
    _log_plainly()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # not a word of each socket that a dead rank leaves behind
    from tinyllama.checkpoint.layout import RunFolder
    from tinyllama.config.checks import processes_per_node
    from tinyllama.engine.startup import run_ranks
    from tinyllama.training.run import run_stage

    measuring = None
    if config.evaluation.every_tokens is not None:
        from tinyllama.evaluation.during import evaluation_hooks

        measuring = evaluation_hooks
    cluster, faults = config.cluster, RunFolder.of(config.paths.runs, plan).faults
    try:
        run_ranks(
            run_stage,
            (config, plan, variants, plain, measuring),
            processes_per_node(cluster),
            cluster.timeout_minutes,
            faults,
        )
    finally:
        signals.ignore()


def _log_plainly() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    finally:
        signals.ignore()
