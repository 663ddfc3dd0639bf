"""Train a stage of a variant: `python -m tinyllama.train +variant=chinese stage=continual`; with -m a family."""

import logging
import sys

from tinyllama.checkpoint.layout import RunFolder, Status
from tinyllama.config.app import command, compose_path
from tinyllama.config.checks import check_path, processes_per_node
from tinyllama.config.schema import RunConfig
from tinyllama.data.inventory import take_inventory
from tinyllama.planning.plan import RunPlan, make_plan
from tinyllama.training.gate import require_corpora, require_one_machine, require_parent
from tinyllama.world import World


@command
def main(config: RunConfig, overrides: list[str]) -> None:
    path = compose_path(overrides)
    check_path(path)
    config = path[-1]
    plan = make_plan(path, take_inventory(config))
    folder = RunFolder.of(config.paths.runs, plan)
    if folder.status is Status.done:
        if World.from_environment().is_main:
            print(f"{plan.name} [{config.variant}] is done: {folder.path}", file=sys.stderr)
        return
    require_parent(config, plan, overrides)
    require_corpora(plan, overrides)
    require_one_machine(config.cluster)
    start(config, plan, (config.variant,))


def start(config: RunConfig, plan: RunPlan, variants: tuple[str, ...], plain: bool = False) -> None:
    """Train a stage on this machine, in ranks that are given or started here; `plain` lines where others print too."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from tinyllama.engine.startup import run_ranks
    from tinyllama.training.run import run_stage

    if code := run_ranks(run_stage, (config, plan, variants, plain), processes_per_node(config.cluster)):
        sys.exit(code)


if __name__ == "__main__":
    main()
