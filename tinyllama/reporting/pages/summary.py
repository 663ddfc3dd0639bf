"""A report in some ten lines, for a terminal."""

from typing import TextIO

from tinyllama.reporting.console import console, table
from tinyllama.reporting.pages.family import Family, Run
from tinyllama.reporting.pages.tree import status
from tinyllama.units import format_seconds, format_tokens


def print_summary(family: Family, stream: TextIO) -> None:
    """A line for each run: where it stands, its time, its last losses, its averages of evaluations in percent."""
    averages = {run.name: _averages(run) for run in family.runs}
    suites = list(dict.fromkeys(name for found in averages.values() for name in found))
    columns = ["status", "tokens", "time", "loss", *family.validated, *(f"{suite} %" for suite in suites)]
    rows = table(family.name, "variants", right=columns)
    for run in family.runs:
        losses = [run.steps.last("loss"), *(run.steps.last(f"validation/{name}") for name in family.validated)]
        rows.add_row(
            f"{'  ' * _depth(family, run)}{run.name}",
            " ".join(run.variants),
            status(run),
            format_tokens(run.trained_tokens),
            format_seconds(3600 * run.hours) if run.hours is not None else "",
            *(f"{loss:.3f}" if loss is not None else "" for loss in losses),
            *(f"{averages[run.name][suite]:.2f}" if suite in averages[run.name] else "" for suite in suites),
        )
    console(stream).print(rows)
    print(_total(family), file=stream)


def _total(family: Family) -> str:
    done = sum(run.finished for run in family.runs)
    tokens = format_tokens(sum(run.trained_tokens for run in family.runs))
    seconds = format_seconds(3600 * sum(run.hours or 0.0 for run in family.runs))
    return f"{done} of {len(family.runs)} runs done: {tokens} tokens in {seconds} of training"


def _averages(run: Run) -> dict[str, float]:
    """Of suites, or where there are none of all tasks."""
    found = run.evaluation or {}
    tasks = [each["value"] for each in (found.get("tasks") or {}).values()]
    return dict(found.get("suites") or {}) or ({f"{len(tasks)} tasks": sum(tasks) / len(tasks)} if tasks else {})


def _depth(family: Family, run: Run) -> int:
    parent = family.parent(run)
    return 0 if parent is None else 1 + _depth(family, parent)
