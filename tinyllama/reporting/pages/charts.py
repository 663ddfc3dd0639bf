"""What the page draws, as the JSON that page.js reads. Pure."""

from typing import Any

import numpy as np

from tinyllama.reporting.pages.family import Family, Run
from tinyllama.reporting.pages.series import Buckets, applied, declared_mixture, numbers, sparse

_OF_THE_MODEL, _OF_THE_MACHINE = ("loss", "grad_norm"), ("tokens_per_second", "data_wait")


def chart_document(family: Family) -> dict[str, Any]:
    """{"family", "variants", "corpora", "runs": [...]}; positions are tokens of life."""
    return {
        "family": family.name,
        "variants": list(family.variants),
        "corpora": list(family.corpora),
        "runs": [_run(family, run) for run in family.runs],
    }


def _run(family: Family, run: Run) -> dict[str, Any]:
    buckets = Buckets(run.steps.tokens)
    parent = family.parent(run)
    return {
        "name": run.name,
        "title": family.title(run),
        "stage": run.stage,
        "variants": list(run.variants),
        "parent": parent.name if parent else None,
        "branch": _is_branch(family, run),
        "start": run.start_tokens,
        "end": run.end_tokens,
        "tokens": buckets.tokens.tolist(),
        "steps_per_point": buckets.steps,
        **{name: buckets.series(applied(run, name)) for name in _OF_THE_MODEL},
        **{name: buckets.series(run.steps.value(name)) for name in _OF_THE_MACHINE},
        "learning_rate": {"mean": numbers(buckets.means(run.steps.value("learning_rate")))},
        "batch_tokens": run.plan["batch_tokens"],
        "corpus_losses": {
            name: buckets.series(applied(run, f"corpus_losses/{name}")) for name in run.steps.group("corpus_losses")
        },
        "validation": {name: sparse(run, f"validation/{name}") for name in run.steps.group("validation")},
        "mixture": _mixture(run, buckets),
        "remarks": [
            {"tokens": each.tokens, "step": each.step, "skipped": each.skipped, "loss": each.loss, "why": each.why}
            for each in run.remarks[:_REMARKS]
        ],
        "pauses": [{"tokens": each.tokens, "step": each.step} for each in run.pauses],
    }


_REMARKS = 500
"""Drawn at most; a run with more of them has other worries."""


def _is_branch(family: Family, run: Run) -> bool:
    """Whether another run before it in the tree has the same stage of the same variants."""
    before = family.runs[: family.runs.index(run)]
    return any(other.stage == run.stage and set(other.variants) & set(run.variants) for other in before)


def _mixture(run: Run, buckets: Buckets) -> dict[str, Any]:
    """Shares of the samples between two points: as read, and as the plan's weights have it."""
    counts = np.stack([buckets.sums(each) for each in _counts(run)], axis=-1)
    totals = counts.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        shares = counts / totals
    edges = np.append(run.start_tokens, buckets.tokens) - run.start_tokens
    integral = declared_mixture(run).integral(edges / run.plan["seq_len"])
    with np.errstate(invalid="ignore", divide="ignore"):
        declared = np.diff(integral, axis=0) / np.diff(edges / run.plan["seq_len"])[:, None]
    return {
        name: {"sampled": numbers(shares[:, place], 4), "declared": numbers(declared[:, place], 4)}
        for place, name in enumerate(run.plan["corpora"])
    }


def _counts(run: Run) -> list[np.ndarray]:
    return [run.steps.value(f"corpus_samples/{name}") for name in run.plan["corpora"]]
