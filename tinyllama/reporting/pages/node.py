"""What the page tells of one run, and of the family as a whole. Pure."""

from collections.abc import Iterable
from datetime import UTC, datetime

import numpy as np

from tinyllama.reporting.pages import tables
from tinyllama.reporting.pages.family import Family, Run, listed
from tinyllama.reporting.pages.markup import Markup, element
from tinyllama.reporting.pages.tree import origin, status, swatch
from tinyllama.units import format_tokens


def family_view(family: Family) -> Markup:
    """All variants side by side."""
    losses = [(run, run.steps.last("loss")) for run in family.runs]
    told = "; ".join(f"{family.title(run)} ends at {loss:.3f}" for run, loss in losses if loss is not None)
    charts = [_chart("family-loss", "Training loss over tokens of life, all runs", f"Training loss. {told}", wide=True)]
    for corpus in family.corpora:
        last = [(run, run.steps.last(f"validation/{corpus}")) for run in family.runs]
        if known := "; ".join(f"{family.title(run)} {loss:.3f}" for run, loss in last if loss is not None):
            charts.append(_chart("family-validation", f"Validation loss on {corpus}", f"Last values: {known}", corpus))
    return element(
        "section",
        element("h2", "The whole family"),
        element("div", *charts, class_="charts"),
        tables.evaluation_of_family(family),
        _table_of_runs(family),
        id="family",
        class_="view",
        tabindex="-1",
    )


def run_view(family: Family, run: Run) -> Markup:
    """Facts, charts and tables of a run."""
    return element(
        "section",
        element("h2", family.title(run), element("span", *(swatch(family, name) for name in run.variants))),
        _facts(family, run),
        element("div", *_charts(run), class_="charts"),
        element(
            "div",
            tables.events_of_run(run),
            tables.mixture_of_run(run),
            tables.evaluation_of_run(family, run),
            tables.differences_of_run(family, run),
            class_="tables",
        ),
        tables.meaning_of_run(run),
        id=run.name,
        class_="view",
        tabindex="-1",
    )


def tiles(family: Family) -> Markup:
    """The family in a few figures."""
    done = sum(run.finished for run in family.runs)
    skipped = sum(remark.skipped for run in family.runs for remark in run.remarks)
    figures = [
        (f"{done} of {len(family.runs)}", "runs done"),
        (format_tokens(sum(run.trained_tokens for run in family.runs)), "tokens trained"),
        (_hours(sum(run.hours or 0 for run in family.runs)), "of training"),
        *_rank_hours(family.runs),
        (f"{skipped:,}", "steps skipped"),
        (f"{sum(len(run.pauses) for run in family.runs):,}", "restarts and pauses"),
    ]
    return element(
        "div", *(element("div", element("b", value), element("span", what)) for value, what in figures), class_="tiles"
    )


def _rank_hours(runs: Iterable[Run]) -> list[tuple[str, str]]:
    known = [(run.rank_hours, run.has_gpus) for run in runs]
    if any(hours is None for hours, _ in known):
        return []
    unit = "GPU-hours" if all(gpus for _, gpus in known) else "process-hours"
    return [(_number(sum(hours or 0 for hours, _ in known)), unit)]


def _facts(family: Family, run: Run) -> Markup:
    plan, steps = run.plan, run.steps
    rate, wait = steps.value("tokens_per_second"), steps.value("data_wait")
    share = wait * rate / plan["batch_tokens"]
    mfu, loss = steps.value("mfu"), steps.last("loss")
    learning_rate = plan["learning_rate"]
    skipped = sum(remark.skipped for remark in run.remarks)
    facts: list[tuple[str, str | None]] = [
        ("status", status(run)),
        ("variants", listed(run.variants)),
        ("continues", origin(family, run)),
        ("digest", element("code", run.digest)),
        ("tokens", f"{run.trained_tokens:,} of {run.end_tokens - run.start_tokens:,}"),
        ("of life", f"{run.start_tokens:,} to {run.end_tokens:,}"),
        ("steps", f"{len(steps) and int(steps.step[-1]):,} of {plan['steps']:,}"),
        ("batch", f"{plan['batch_tokens']:,} tokens, sequences of {plan['seq_len']:,}"),
        ("learning rate", f"{learning_rate['start']:.3g} to {learning_rate['end']:.3g}"),
        ("training loss", f"{loss:.4f}" if loss is not None else None),
        ("time", _hours(run.hours) if run.hours is not None else None),
        ("when", _when(run)),
        *((name, value) for value, name in _rank_hours([run])),
        ("processes", str(run.ranks) if run.ranks is not None else None),
        ("throughput", f"{np.nanmedian(rate):,.0f} tokens/s (median)" if np.isfinite(rate).any() else None),
        ("MFU", f"{np.nanmedian(mfu):.1%}" if np.isfinite(mfu).any() else None),
        ("data wait", f"{np.nanmedian(share):.2%} of a step (median)" if np.isfinite(share).any() else None),
        ("skipped steps", f"{skipped:,}" if run.checkpoints is not None else "not told by this source"),
        ("restarts and pauses", f"{len(run.pauses):,}"),
        ("checkpoints at", tables.checkpoints_of_run(run)),
        ("unreadable lines", f"{run.unreadable_lines:,} of its journal" if run.unreadable_lines else None),
        ("record", element("code", run.place)),
    ]
    known = [(name, value) for name, value in facts if value is not None]
    return element(
        "dl", *(element("div", element("dt", name), element("dd", value)) for name, value in known), class_="facts"
    )


def _charts(run: Run) -> list[Markup]:
    """Those for which something was measured."""
    steps = run.steps
    validated = {name: steps.last(f"validation/{name}") for name in steps.group("validation")}
    wanted = [
        ("loss", "Training loss", _ends(run, "loss"), steps.last("loss") is not None),
        ("validation", "Validation loss per corpus", _listed_values(validated), bool(validated)),
        ("corpus_losses", "Training loss per corpus", "", bool(steps.group("corpus_losses"))),
        ("mixture", "Mixture: as read (lines), as declared (broad bands)", "", bool(steps.group("corpus_samples"))),
        ("learning_rate", "Learning rate and batch", _ends(run, "learning_rate"), len(steps) > 0),
        ("grad_norm", "Gradient norm", _ends(run, "grad_norm"), steps.last("grad_norm") is not None),
        ("tokens_per_second", "Throughput", _ends(run, "tokens_per_second"), run.hours is not None),
        ("data_wait", "Waiting for data", "", steps.last("data_wait") is not None),
    ]
    return [_chart(kind, caption, f"{caption}. {told}", run.name) for kind, caption, told, known in wanted if known]


def _chart(kind: str, caption: str, label: str, of: str = "", wide: bool = False) -> Markup:
    canvas = element("div", class_="chart", role="img", aria_label=label, data_chart=kind, data_of=of)
    return element("figure", element("figcaption", caption), canvas, class_="wide" if wide else None)


def _table_of_runs(family: Family) -> Markup:
    rows = []
    for run in family.runs:
        losses = [run.steps.last("loss"), *(run.steps.last(f"validation/{name}") for name in family.validated)]
        link = element("a", run.name, href=f"#{run.name}", data_view=run.name)
        shown = [f"{loss:.3f}" if loss is not None else "" for loss in losses]
        hours = _hours(run.hours) if run.hours is not None else ""
        rows.append([link, listed(run.variants), status(run), format_tokens(run.trained_tokens), hours, *shown])
    headings = ["run", "variants", "status", "tokens", "time", "training loss", *family.validated]
    return tables.table("All runs: last training loss, and last validation loss per corpus", headings, rows, words=3)


def _ends(run: Run, name: str) -> str:
    values = run.steps.value(name)
    known = values[np.isfinite(values)]
    return f"From {known[0]:.4g} to {known[-1]:.4g}." if len(known) else ""


def _listed_values(values: dict[str, float | None]) -> str:
    return "Last values: " + ", ".join(f"{name} {value:.3f}" for name, value in values.items() if value is not None)


def _when(run: Run) -> str | None:
    known = run.steps.seconds[run.steps.seconds > 0]
    if not len(known):
        return None
    first, last = (datetime.fromtimestamp(float(each), UTC) for each in (known[0], known[-1]))
    return f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"


def _hours(hours: float) -> str:
    return f"{hours * 60:.1f} min" if hours < 1 else f"{_number(hours)} h"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
