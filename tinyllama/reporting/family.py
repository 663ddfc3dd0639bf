"""The family tree as tables on a terminal."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from tinyllama.checkpoint.layout import RunFolder, Status
from tinyllama.planning.document import plan_document
from tinyllama.planning.tree import Node
from tinyllama.reporting.console import console
from tinyllama.units import format_tokens


def print_outcomes(nodes: Sequence[Node], outcomes: Mapping[str, str]) -> None:
    """What became of each node (by digest), with its last validation losses; on standard error."""
    losses = {node.plan.digest: _validation(node) for node in nodes}
    corpora = list(dict.fromkeys(name for each in losses.values() for name in each))
    table = _table("run", "variants", right=("tokens of life", *corpora))
    table.add_column("status")
    for node in nodes:
        loss = losses[node.plan.digest]
        table.add_row(
            indented_name(node),
            ", ".join(node.variants),
            format_tokens(node.plan.end_tokens),
            *(f"{loss[name]:.3f}" if name in loss else "" for name in corpora),
            outcomes[node.plan.digest],
        )
    if corpora:
        print("Validation loss, per corpus:", file=sys.stderr)
    console(sys.stderr).print(table)


def print_plan(nodes: Sequence[Node]) -> None:
    """The tree's arithmetic, a row a run, on standard output."""
    table = _table("run", "variants", "status", right=("tokens", "until", "steps", "batch", "learning rate"))
    table.add_column("mixture at the end (epochs from the root)")
    for node in nodes:
        document = _document(node)
        table.add_row(
            indented_name(node),
            ", ".join(node.variants),
            document["status"],
            format_tokens(document["tokens"]),
            format_tokens(document["end_tokens"]),
            str(document["steps"]),
            format_tokens(document["batch_tokens"]),
            "{start:.2e} to {end:.2e}".format(**document["learning_rate"]),
            "\n".join(_share(name, row) for name, row in document["corpora"].items()),
        )
    print(f"family {nodes[0].plan.family}")
    console(sys.stdout).print(table)
    if any(node.plan.provisional for node in nodes):
        print("Corpora that are not prepared yet are reckoned with the sizes in conf/.")


def print_plan_json(nodes: Sequence[Node]) -> None:
    """The same as one JSON document."""
    documents = [_document(node) for node in nodes]
    totals = {"nodes": len(nodes)}
    print(json.dumps({"family": nodes[0].plan.family, "nodes": documents, "totals": totals, "lints": []}))


def _document(node: Node) -> dict[str, Any]:
    folder = RunFolder.of(node.config.paths.runs, node.plan)
    return plan_document(node.plan, node.variants, folder.status.value, str(folder.path))


def indented_name(node: Node) -> str:
    """The run's name, set in by its depth in the tree."""
    return "  " * (len(node.plan.path) - 1) + node.plan.name


def status_of(node: Node) -> Status:
    return RunFolder.of(node.config.paths.runs, node.plan).status


def _table(*left: str, right: Sequence[str]) -> Table:
    table = Table(box=None, header_style="bold")
    for heading in left:
        table.add_column(heading, overflow="fold")
    for heading in right:
        table.add_column(heading, justify="right")
    return table


def _share(name: str, row: Mapping[str, Any]) -> str:
    return f"{name} {row['weight_end']:.0%} ({row['epochs_after']:.2f})"


def _validation(node: Node) -> dict[str, Any]:
    done = RunFolder.of(node.config.paths.runs, node.plan).done
    return dict(json.loads(done.read_text(encoding="utf-8"))["validation"]) if done.is_file() else {}
