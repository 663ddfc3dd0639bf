"""The report's tables. Pure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tinyllama.planning.identity import differences, flatten
from tinyllama.reporting.pages.family import Family, Run, listed
from tinyllama.reporting.pages.markup import Markup, element, joined
from tinyllama.reporting.pages.series import declared_mixture, greatest_deviation
from tinyllama.units import format_seconds, format_tokens

_SHOWN = 50
"""Rows of a table of events."""


def table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> Markup:
    """Under a heading, in a box that scrolls sideways. The first `words` columns hold words, the others numbers."""
    kinds = [None if place < words else "number" for place in range(len(headings))]
    head = element(
        "tr", *(element("th", name, scope="col", class_=kind) for name, kind in zip(headings, kinds, strict=True))
    )
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", cell, class_=kind) for cell, kind in zip(row[1:], kinds[1:], strict=True)),
        )
        for row in rows
    ]
    whole = element("table", element("thead", head), element("tbody", *body), aria_label=caption)
    box = element("div", whole, class_="scroll", tabindex="0", role="region", aria_label=f"{caption}, scrolls sideways")
    return element("div", element("h3", caption), box, class_="table")


def evaluation_of_family(family: Family) -> Markup:
    """Tasks down, models across; below each value what it gained over that of the nearest ancestor that was asked the
    same, and over the published one.
    """
    runs = [run for run in family.runs if run.evaluation]
    if not runs:
        return joined()
    tasks = dict.fromkeys(name for run in runs for name in _tasks(run))
    suites = dict.fromkeys(name for run in runs for name in _suites(run))
    rows = [[name, *(_cell(family, run, name) for run in runs)] for name in tasks]
    rows += [[f"average of {name}", *(_average(family, run, name) for run in runs)] for name in suites]
    names = [joined(element("span", run.stage), element("small", listed(run.variants))) for run in runs]
    caption = "Evaluation: percent, standard error, gain over an ancestor's value and over the published one"
    return table(caption, ["task", *names], rows)


def evaluation_of_run(family: Family, run: Run) -> Markup:
    if not run.evaluation:
        return joined()
    tokens = max(run.evaluations)
    rows = [
        [
            name,
            str(each.get("metric", "")),
            _measured(each),
            _gained(each["value"], _before(family, run, name)),
            f"{each['published']:.2f}" if each.get("published") is not None else "",
            _gain(each["value"], each.get("published")),
        ]
        for name, each in _tasks(run).items()
    ]
    headings = ["task", "metric", "value", "gained over", "published", "gained"]
    corpora = [
        [name, f"{each['loss']:.4f}", f"{each['perplexity']:.2f}", f"{each['bits_per_byte']:.4f}"]
        for name, each in (run.evaluation.get("perplexity") or {}).items()
    ]
    parts = [table(f"Evaluation at {format_tokens(tokens)} tokens of life", headings, rows, words=2)] if rows else []
    if corpora:
        parts.append(table("Perplexity on held-out text", ["corpus", "loss", "perplexity", "bits per byte"], corpora))
    return joined(*parts)


def mixture_of_run(run: Run) -> Markup:
    """What was declared against what was read, so far."""
    position = run.trained_tokens // run.plan["seq_len"]
    due = dict(zip(run.plan["corpora"], declared_mixture(run).integral(position).tolist(), strict=True))
    rows = []
    for name, each in run.plan["corpora"].items():
        counts = run.steps.value(f"corpus_samples/{name}")
        read = int(counts[counts > 0].sum())
        epochs = f"{each['epochs_before']:.3f} to {each['epochs_after']:.3f}"
        weights = f"{each['weight_start']:.1%} to {each['weight_end']:.1%}"
        rows.append([name, weights, f"{due[name]:,.1f}", f"{read:,}", epochs])
    off = greatest_deviation(run)
    note = (
        f"At no step was a corpus more than {off:.2f} samples off its declared share."
        if off is not None
        else "Not every step was recorded here, so that counts are those of the recorded ones."
    )
    shown = table("Mixture", ["corpus", "declared weight", "samples due", "samples read", "epochs of its data"], rows)
    return element("div", shown, element("p", note, class_="note"), class_="table")


def differences_of_run(family: Family, run: Run) -> Markup:
    """What it means otherwise than its parent."""
    parent = family.parent(run)
    if parent is None:
        return joined()
    rows = [
        [each.field, _short(_value(each.old)), _short(_value(each.new))]
        for each in differences(parent.meaning, run.meaning)
        if each.field != "parent"
    ]
    return table(f"What differs from {parent.name}", ["setting", "there", "here"], rows, words=3)


def meaning_of_run(run: Run) -> Markup:
    rows = [[name, _value(value)] for name, value in flatten(run.meaning).items()]
    shown = table("All that its digest is made of", ["setting", "value"], rows, words=2)
    return element("details", element("summary", f"Meaning: {len(rows)} settings"), shown)


def events_of_run(run: Run) -> Markup:
    """Skipped and unusual steps, and pauses."""
    parts = []
    if run.remarks:
        rows = [
            [
                f"{each.step:,}",
                format_tokens(each.tokens),
                "skipped" if each.skipped else "applied",
                each.why,
                f"{each.loss:.4f}" if each.loss is not None else "not finite",
            ]
            for each in run.remarks[:_SHOWN]
        ]
        parts.append(table(_first("Skipped and unusual steps", run.remarks), ["step", "tokens of life", "what became "
                           "of it", "why", "loss"], rows, words=5))  # fmt: skip
    if run.pauses:
        rows = [
            [f"{each.step:,}", format_tokens(each.tokens), format_seconds(each.seconds)] for each in run.pauses[:_SHOWN]
        ]
        parts.append(table(_first("Restarts and pauses", run.pauses), ["before step", "tokens of life", "how long"],
                           rows, words=3))  # fmt: skip
    return joined(*parts)


def checkpoints_of_run(run: Run) -> str:
    if run.checkpoints is None:
        return "not told by this source"
    return ", ".join(f"{tokens:,}" for tokens in run.checkpoints) or "none yet"


def _first(what: str, events: Sequence[Any]) -> str:
    return f"{what}: the first {_SHOWN} of {len(events)}" if len(events) > _SHOWN else what


def _tasks(run: Run) -> Mapping[str, Any]:
    return (run.evaluation or {}).get("tasks") or {}


def _suites(run: Run) -> Mapping[str, Any]:
    return (run.evaluation or {}).get("suites") or {}


def _before(family: Family, run: Run, task: str) -> tuple[str, float] | None:
    """Stage and value of the nearest ancestor that was asked the same."""
    asked = _questions(_tasks(run)[task])
    for ancestor in family.ancestors(run):
        found = _tasks(ancestor).get(task)
        if found is not None and _questions(found) == asked:
            return ancestor.stage, found["value"]
    return None


def _questions(task: Mapping[str, Any]) -> list[Any]:
    return [task.get(name) for name in ("metric", "samples", "shots", "version")]


def _cell(family: Family, run: Run, task: str) -> Markup:
    found = _tasks(run).get(task)
    if found is None:
        return joined("")
    value, published = found["value"], found.get("published")
    notes = [_gained(value, _before(family, run, task)), _gained(value, published and ("published", published))]
    return joined(_measured(found), *(element("small", note) for note in notes if note))


def _average(family: Family, run: Run, suite: str) -> Markup:
    value = _suites(run).get(suite)
    if value is None:
        return joined("")
    known = ((each.stage, _suites(each)[suite]) for each in family.ancestors(run) if suite in _suites(each))
    note = _gained(value, next(known, None))
    return joined(f"{value:.2f}", *([element("small", note)] if note else []))


def _measured(task: Mapping[str, Any]) -> str:
    """With the standard error, where there is one."""
    error = f" ± {task['stderr']:.2f}" if task.get("stderr") is not None else ""
    return f"{task['value']:.2f}{error}"


def _gained(value: float, other: tuple[str, float] | None) -> str:
    """Over a value of which the first word says whose it is."""
    return "" if other is None else f"{other[0]} {_gain(value, other[1])}"


def _gain(value: float, other: float | None) -> str:
    return "" if other is None else f"{value - other:+.2f}".replace("-", "\N{MINUS SIGN}")


def _short(value: str) -> str:
    """Digests by their beginning; they stand whole in the meaning."""
    return f"{value[:12]}…" if re.fullmatch("[0-9a-f]{64}", value) else value


def _value(value: Any) -> str:
    if value is None:
        return "\N{EN DASH}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000 else str(value)
