"""What became of a family, as a table on a terminal."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from tinyllama.checkpoint.layout import RunFolder, Status
from tinyllama.planning.tree import Node
from tinyllama.reporting.console import console, table


class End(Enum):
    """How a node ended, as the table says it."""

    done = "done"
    stopped = "stopped"
    failed = "failed"
    not_started = "not started"


@dataclass(frozen=True)
class Outcome:
    """What became of a node."""

    end: End
    why: str = ""
    """In one line."""
    exit_code: int = 0
    log: Path | None = None
    """Where more is told."""


def print_outcomes(nodes: Sequence[Node], outcomes: Mapping[str, Outcome]) -> None:
    """What became of each node (by digest), with its last validation losses; on standard error.

    Reasons stand below the table: they are as long as they are.
    """
    losses = {node.plan.digest: _validation(node) for node in nodes}
    corpora = list(dict.fromkeys(name for each in losses.values() for name in each))
    rows = table("run")
    rows.add_column("status", no_wrap=True)
    rows.add_column("variants", overflow="fold")
    for name in corpora:
        rows.add_column(name, justify="right", no_wrap=True)
    for node in nodes:
        loss = losses[node.plan.digest]
        rows.add_row(
            indented_name(node),
            outcomes[node.plan.digest].end.value,
            " ".join(node.variants),
            *(f"{loss[name]:.3f}" if name in loss else "" for name in corpora),
        )
    if corpora:
        print("Validation loss, per corpus:", file=sys.stderr)
    console(sys.stderr).print(rows)
    for node in nodes:
        outcome = outcomes[node.plan.digest]
        if outcome.why:
            print(f"{node.plan.name} {outcome.end.value}: {outcome.why}", file=sys.stderr)
        if outcome.log is not None:
            print(f"  log: {outcome.log}", file=sys.stderr)


def indented_name(node: Node) -> str:
    """The run's name, set in by its depth in the tree."""
    return "  " * (len(node.plan.path) - 1) + node.plan.name


def status_of(node: Node) -> Status:
    return RunFolder.of(node.config.paths.runs, node.plan).status


def _validation(node: Node) -> dict[str, Any]:
    done = RunFolder.of(node.config.paths.runs, node.plan).done
    return dict(json.loads(done.read_text(encoding="utf-8"))["validation"]) if done.is_file() else {}
