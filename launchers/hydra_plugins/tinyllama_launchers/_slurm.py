"""Submits the tree to SLURM."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace

from hydra_plugins.tinyllama_launchers._family import family_of
from tinyllama.errors import ConfigError
from tinyllama.planning.tree import Node
from tinyllama.reporting.console import console, table
from tinyllama.reporting.family import indented_name, status_of
from tinyllama.slurm.submission import Place, live, require_slurm, submit_tree
from tinyllama.training.gate import require_ready


def submit_family(sweep: Sequence[Sequence[str]], typed: Sequence[str], chosen: Sequence[str]) -> None:
    """Queue the nodes of a sweep that are neither done nor queued.

    Args:
        sweep: the overrides of each job.
        typed: the overrides as they were typed.
        chosen: those that choose the launcher.

    Raises:
        TinyllamaError: a job's settings are wrong, or SLURM refuses.
    """
    nodes = [_as_typed(node, chosen) for node in family_of(sweep)]
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
        _tell_how_to_follow(nodes, typed)


def _as_typed(node: Node, chosen: Sequence[str]) -> Node:
    """With the choice of the launcher, which Hydra keeps apart."""
    return node if node.overrides is None else replace(node, overrides=(*node.overrides, *chosen))


def _tell_how_to_follow(nodes: Sequence[Node], typed: Sequence[str]) -> None:
    print(f"How they stand: {shlex.join(['python', '-m', 'tinyllama.plan', *typed])}", file=sys.stderr)
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
