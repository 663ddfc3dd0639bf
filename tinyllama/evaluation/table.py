"""Evaluations side by side, for people."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from tinyllama.evaluation.record import Ancestor, Evaluation
from tinyllama.evaluation.suites import HELD_OUT, SUITES
from tinyllama.units import format_tokens


@dataclass(frozen=True)
class Column:
    """A model of the table."""

    evaluation: Evaluation
    ancestor: Ancestor | None
    """The nearest that has been evaluated on the same questions."""
    gained: Mapping[str, float]
    """Differences to it, by task."""


def comparison(columns: Sequence[Column]) -> Table:
    """Rows are tasks, suite by suite with their averages; columns are models, each with its differences."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("task", no_wrap=True)
    table.add_column("", no_wrap=True)
    for column in columns:
        for heading in _headings(column):
            table.add_column(heading, justify="right", no_wrap=True)
    for name, metric in _rows([column.evaluation for column in columns]):
        cells = [cell for column in columns for cell in _cells(column, name)]
        table.add_row(name, metric, *cells, style="bold" if not metric else None)
    return table


def perplexities(evaluations: Sequence[Evaluation]) -> Table:
    """Rows are corpora; of each model perplexity per token, and bits per byte, in which tokenizers compare."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("held-out text", no_wrap=True)
    for each in evaluations:
        table.add_column(f"{_title(each)}\nperplexity", justify="right", no_wrap=True)
        table.add_column("\n\nbits/byte", justify="right", no_wrap=True)
    for corpus in dict.fromkeys(name for each in evaluations for name in each.perplexity):
        cells = []
        for each in evaluations:
            losses = each.perplexity.get(corpus)
            cells += [f"{losses['perplexity']:.2f}", f"{losses['bits_per_byte']:.3f}"] if losses else ["", ""]
        table.add_row(corpus, *cells)
    return table


def markdown(evaluation: Evaluation) -> str:
    """Of one model, as it lies in the run's directory and in the tracking store."""
    published = any(task["published"] is not None for task in evaluation.tasks.values())
    lines = [f"# {evaluation.name} at {format_tokens(evaluation.tokens or 0)} tokens", ""]
    if evaluation.tasks:
        lines += _markdown_row("task", "metric", "value", "stderr", *["published"] * published)
        lines += _markdown_row(*["---"] * (4 + published))
        for name, metric in _rows([evaluation]):
            task = evaluation.tasks.get(name)
            values = [task["value"], task["stderr"]] if task else [evaluation.suites[name], None]
            values += [task["published"] if task else None] * published
            lines += _markdown_row(name, metric, *("" if value is None else f"{value:.2f}" for value in values))
        lines.append("")
    if evaluation.perplexity:
        names = ("loss", "perplexity", "bits_per_byte")
        lines += _markdown_row("held-out text", *names) + _markdown_row(*["---"] * 4)
        for corpus, losses in evaluation.perplexity.items():
            lines += _markdown_row(corpus, *(f"{losses[name]:.4f}" for name in names))
        lines.append("")
    return "\n".join(lines)


def _markdown_row(*cells: str) -> list[str]:
    return [f"| {' | '.join(cells)} |"]


def _rows(evaluations: Sequence[Evaluation]) -> Iterator[tuple[str, str]]:
    """Names of tasks with their metrics, those of a suite together; its average below them, with no metric."""
    tasks: dict[str, dict[str, Any]] = {}
    for evaluation in evaluations:
        tasks = evaluation.tasks | tasks
    averages = {name for evaluation in evaluations for name in evaluation.suites}
    for suite in (*SUITES, HELD_OUT):
        members = [name for name in tasks if _suite_of(name) == suite]
        yield from ((name, tasks[name]["metric"]) for name in members)
        if suite in averages and len(members) > 1:
            yield suite, ""
    yield from ((name, task["metric"]) for name, task in tasks.items() if _suite_of(name) is None)


def _suite_of(task: str) -> str | None:
    if task.startswith(f"{HELD_OUT}_"):
        return HELD_OUT
    return next((name for name, suite in SUITES.items() if task in {each.task for each in suite}), None)


def _title(evaluation: Evaluation) -> str:
    """On two lines: names and variants are long."""
    variants = evaluation.variants
    return f"{evaluation.name}\n{f'{len(variants)} variants' if len(variants) > 1 else ''.join(variants)}"


def _headings(column: Column) -> list[str]:
    """Value, and where there is something to compare with, the differences."""
    return [
        _title(column.evaluation),
        *([f"to\n{column.ancestor.stage}"] if column.ancestor else []),
        *(["to\npublished"] if _published(column) else []),
    ]


def _published(column: Column) -> dict[str, float]:
    tasks = column.evaluation.tasks
    return {name: task["value"] - task["published"] for name, task in tasks.items() if task["published"] is not None}


def _cells(column: Column, row: str) -> list[str]:
    evaluation, task = column.evaluation, column.evaluation.tasks.get(row)
    if task is not None:
        value = f"{task['value']:.2f}" + (f" ±{task['stderr']:.2f}" if task["stderr"] is not None else "")
    else:
        value = f"{evaluation.suites[row]:.2f}" if row in evaluation.suites else ""
    return [value, *(_signed(found.get(row)) for found in (column.gained, _published(column)) if found)]


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"
