"""The family tree as tables on a terminal."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tinyllama.checkpoint.layout import RunFolder, Status
from tinyllama.planning.tree import Node
from tinyllama.reporting.console import console, table
from tinyllama.units import format_tokens


def print_outcomes(nodes: Sequence[Node], outcomes: Mapping[str, str]) -> None:
    """What became of each node (by digest), with its last validation losses; on standard error."""
    losses = {node.plan.digest: _validation(node) for node in nodes}
    corpora = list(dict.fromkeys(name for each in losses.values() for name in each))
    rows = table("run", "variants", right=("tokens of life", *corpora))
    rows.add_column("status")
    for node in nodes:
        loss = losses[node.plan.digest]
        rows.add_row(
            indented_name(node),
            ", ".join(node.variants),
            format_tokens(node.plan.end_tokens),
            *(f"{loss[name]:.3f}" if name in loss else "" for name in corpora),
            outcomes[node.plan.digest],
        )
    if corpora:
        print("Validation loss, per corpus:", file=sys.stderr)
    console(sys.stderr).print(rows)


def indented_name(node: Node) -> str:
    """The run's name, set in by its depth in the tree."""
    return "  " * (len(node.plan.path) - 1) + node.plan.name


def status_of(node: Node) -> Status:
    return RunFolder.of(node.config.paths.runs, node.plan).status


def _validation(node: Node) -> dict[str, Any]:
    done = RunFolder.of(node.config.paths.runs, node.plan).done
    return dict(json.loads(done.read_text(encoding="utf-8"))["validation"]) if done.is_file() else {}
