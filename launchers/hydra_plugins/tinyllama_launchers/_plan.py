"""Shows the tree instead of running it."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra_plugins.tinyllama_launchers._family import family_of
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.config.schema import Format
from tinyllama.errors import ConfigError
from tinyllama.lineage.tracking import measured_throughput
from tinyllama.planning.cost import Throughput, throughput
from tinyllama.planning.identity import digest
from tinyllama.planning.lints import lint, require_no_errors
from tinyllama.planning.tree import Node
from tinyllama.reporting.plan import print_plan, print_plan_json, survey
from tinyllama.slurm.client import QueuedJob
from tinyllama.slurm.record import live_jobs
from tinyllama.training.drift import beside


def show_family(sweep: Sequence[Sequence[str]]) -> None:
    """Print the family of a sweep.

    Args:
        sweep: the overrides of each job.

    Raises:
        TinyllamaError: a job's settings are wrong, or the family cannot be trained as it is.
    """
    nodes = family_of(sweep)
    config, lints = nodes[-1].config, lint(nodes)
    plan = survey(nodes, _rates(nodes), lints, _beside(nodes), _jobs(nodes))
    show = print_plan_json if config.format is Format.json else print_plan
    show(plan)
    if config.plots is not None:
        _draw(nodes, Path(config.plots))
    require_no_errors(lints)


def _draw(nodes: Sequence[Node], folder: Path) -> None:
    from tinyllama.reporting.plots import draw_family  # matplotlib is slow to import

    for picture in draw_family(nodes, folder):
        print(picture, file=sys.stderr)


def _jobs(nodes: Sequence[Node]) -> dict[str, QueuedJob]:
    """What SLURM has of these nodes, by digest. A plan can do without, so SLURM may be silent."""
    try:
        return live_jobs({node.plan.digest: RunFolder.of(node.config.paths.runs, node.plan) for node in nodes})
    except ConfigError as error:
        print(f"warning: {error}", file=sys.stderr)
        return {}


def _rates(nodes: Sequence[Node]) -> dict[str, Throughput]:
    """By digest; the store is asked once for each model and cluster."""
    found: dict[tuple[str, str], list[float]] = {}
    rates = {}
    for node in nodes:
        model, cluster = digest(node.plan.meaning["model"]), node.config.cluster.name
        if (model, cluster) not in found:
            runs = Path(node.config.paths.runs)
            found[model, cluster] = measured_throughput(node.config.tracking, runs, model, cluster)
        rates[node.plan.digest] = throughput(node.config, found[model, cluster])
    return rates


def _beside(nodes: Sequence[Node]) -> list[Mapping[str, Any]]:
    """What stands under the labels of these nodes, each run once."""
    standing = {run.digest: run for runs in beside(nodes) for run in runs}
    return [
        {
            "stage": run.stage,
            "variants": list(run.variants),
            "digest": run.digest,
            "run_dir": str(run.folder.path),
            "tokens": run.tokens,
        }
        for run in standing.values()
    ]
