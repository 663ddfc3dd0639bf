"""A plan as the JSON that people and programs read (design of `plan` and plan.json)."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tinyllama.config.micro_batch import source
from tinyllama.config.schema import RunConfig
from tinyllama.planning.communication import communication
from tinyllama.planning.cost import Throughput, assumed_throughput, expense, jobs_in_a_row, step_seconds
from tinyllama.planning.memory import estimate_memory
from tinyllama.planning.plan import RunPlan
from tinyllama.planning.storage import checkpoint_bytes, checkpoints_bytes


def plan_document(
    plan: RunPlan,
    config: RunConfig,
    variants: Sequence[str],
    status: str,
    run_dir: str,
    rate: Throughput | None = None,
) -> dict[str, Any]:
    """One node: what is trained, from where to where, on what.

    Args:
        rate: what runs have measured; None reckons with what the cluster assumes.
    """
    return {
        "digest": plan.digest,
        "stage": plan.stage,
        "variants": list(variants),
        "parent": plan.parent.digest if plan.parent else None,
        "origin": plan.meaning["parent"] if plan.origin else None,
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
        "checkpoint_bytes": checkpoint_bytes(config),
        "checkpoints_bytes": checkpoints_bytes(plan, config),
        "micro_batch": _micro_batch(config),
        "memory": _memory(config),
        "communication": _communication(plan, config, rate or assumed_throughput(config)),
        "time": _time(plan, config, rate or assumed_throughput(config)),
    }


def _memory(config: RunConfig) -> dict[str, Any]:
    """Of each GPU."""
    memory = estimate_memory(config)
    return {
        "gib_per_gpu": memory.gib,
        "gib_available": config.cluster.gpu_memory_gib,
        "parts_gib": memory.parts_gib(),
    }


def _communication(plan: RunPlan, config: RunConfig, rate: Throughput) -> dict[str, Any]:
    """Of each rank, in an optimizer step."""
    sent = communication(config, plan.batch_samples)
    return {
        "layout": sent.layout,
        "gb_per_step": sent.sent_bytes / 1e9,
        "seconds_per_step": sent.seconds,
        "share": sent.share_of(step_seconds(plan.batch_tokens, rate, config.cluster)),
    }


def _micro_batch(config: RunConfig) -> dict[str, Any]:
    cluster = config.cluster
    return {"samples": cluster.micro_batch, "auto": cluster.micro_batch_is_auto, "source": source(config)}


def _time(plan: RunPlan, config: RunConfig, rate: Throughput) -> dict[str, Any]:
    spent = expense(plan.tokens, rate, config.cluster)
    return asdict(spent) | {"jobs": jobs_in_a_row(spent.hours, config.cluster.slurm)} | asdict(rate)


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
