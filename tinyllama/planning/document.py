"""A plan as the JSON that people and programs read (design of `plan` and plan.json)."""

from collections.abc import Sequence
from typing import Any

from tinyllama.planning.plan import RunPlan


def plan_document(plan: RunPlan, variants: Sequence[str], status: str, run_dir: str) -> dict[str, Any]:
    """One node: what is trained, from where to where, on what."""
    return {
        "digest": plan.digest,
        "stage": plan.stage,
        "variants": list(variants),
        "parent": plan.parent.digest if plan.parent else None,
        "status": status,
        "run_dir": run_dir,
        "provisional": plan.provisional,
        "seq_len": plan.seq_len,
        "tokens": plan.tokens,
        "start_tokens": plan.start_tokens,
        "end_tokens": plan.end_tokens,
        "samples": plan.samples,
        "steps": plan.steps,
        "batch_tokens": plan.batch_tokens,
        "ramp_tokens": plan.ramp_tokens,
        "learning_rate": {"start": plan.schedule(plan.start_tokens), "end": plan.schedule(plan.end_tokens)},
        "corpora": _corpora(plan),
    }


def _corpora(plan: RunPlan) -> dict[str, Any]:
    after = plan.order.draws_before(plan.samples)
    rows = {}
    for name in plan.corpora:
        before, epoch = plan.start_draws.get(name, 0), plan.order.epoch_samples(name)
        rows[name] = {
            "weight_start": plan.start_weights.get(name, 0.0),
            "weight_end": plan.end_weights.get(name, 0.0),
            "samples": after[name] - before,
            "tokens": (after[name] - before) * plan.seq_len,
            "epochs_before": before / epoch,
            "epochs_after": after[name] / epoch,
        }
    return rows
