"""What training takes in time and money, and what sharing ancestors saves. Whatever is not known is None, never 0.

A GPU-hour is an hour of one rank; on a cluster without GPUs, that of a process.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tinyllama.config.checks import processes_per_node, total_ranks
from tinyllama.config.schema import ClusterConfig, RunConfig, SlurmConfig
from tinyllama.planning.flops import flops_per_token
from tinyllama.planning.tree import Node


@dataclass(frozen=True)
class Throughput:
    tokens_per_second_per_gpu: float | None
    source: str
    """Where the figure comes from, in words."""


@dataclass(frozen=True)
class Expense:
    """What training some tokens takes."""

    gpu_hours: float | None
    hours: float | None
    """On the clock, with all ranks at work."""
    cost: float | None
    """In the unit of `cluster.price_per_gpu_hour`."""


@dataclass(frozen=True)
class Totals:
    """Of a whole tree. `saved` is what training each variant's path by itself would take on top."""

    nodes: int
    tokens: int
    tokens_saved: int
    gpu_hours: float | None
    gpu_hours_saved: float | None
    gpu_hours_remaining: float | None
    """For what is not trained yet."""
    cost: float | None
    cost_saved: float | None
    cost_remaining: float | None


def throughput(config: RunConfig, measured: Sequence[float] = ()) -> Throughput:
    """The median of what finished runs of this model on this cluster have `measured`, or else what is assumed."""
    if not measured:
        return assumed_throughput(config)
    runs = "1 finished run" if len(measured) == 1 else f"the median of {len(measured)} finished runs"
    return Throughput(median(measured), f"{runs} of this model on this cluster")


def assumed_throughput(config: RunConfig) -> Throughput:
    """By the cluster's assumed utilisation (FLOPs per token as flops.py counts them), where it gives one."""
    cluster = config.cluster
    if cluster.assumed_mfu is None or cluster.gpu_peak_tflops is None:
        lacking = "cluster.assumed_mfu" if cluster.assumed_mfu is None else "cluster.gpu_peak_tflops"
        return Throughput(None, f"unknown: no finished run of this model on this cluster, and no {lacking}")
    rate = cluster.assumed_mfu * cluster.gpu_peak_tflops * 1e12 / flops_per_token(config.model)
    return Throughput(rate, f"an assumed MFU of {cluster.assumed_mfu:g} of {cluster.gpu_peak_tflops:g} TFLOPS")


def expense(tokens: int, rate: Throughput, cluster: ClusterConfig) -> Expense:
    """What so many tokens take on the whole cluster."""
    if rate.tokens_per_second_per_gpu is None:
        return Expense(None, None, None)
    gpu_hours = tokens / rate.tokens_per_second_per_gpu / 3600
    hours = gpu_hours / (cluster.nodes * processes_per_node(cluster))
    price = cluster.price_per_gpu_hour
    return Expense(gpu_hours, hours, None if price is None else gpu_hours * price)


def step_seconds(batch_tokens: int, rate: Throughput, cluster: ClusterConfig) -> float | None:
    """Of an optimizer step on the whole cluster."""
    each = rate.tokens_per_second_per_gpu
    return None if each is None else batch_tokens / (each * total_ranks(cluster))


def jobs_in_a_row(hours: float | None, slurm: SlurmConfig) -> int | None:
    """How many jobs of SLURM's time limit so many hours of training take; each but the last stops at its notice."""
    if hours is None:
        return None
    return max(1, math.ceil(hours / (slurm.time_hours - slurm.notice_seconds / 3600)))


def sum_up(nodes: Sequence[Node], rates: Mapping[str, Throughput], trained: Mapping[str, int]) -> Totals:
    """The totals of a tree.

    Args:
        rates: of every node, by digest.
        trained: tokens of every node that are trained already, by digest.
    """
    saved = _tokens_saved(nodes)
    tokens = {node.plan.digest: node.plan.tokens for node in nodes}
    remaining = {digest: count - trained.get(digest, 0) for digest, count in tokens.items()}

    def spent(counts: Mapping[str, int]) -> list[Expense]:
        return [expense(counts[node.plan.digest], rates[node.plan.digest], node.config.cluster) for node in nodes]

    whole, shared, left = spent(tokens), spent(saved), spent(remaining)
    return Totals(
        nodes=len(nodes),
        tokens=sum(tokens.values()),
        tokens_saved=sum(saved.values()),
        gpu_hours=_sum(each.gpu_hours for each in whole),
        gpu_hours_saved=_sum(each.gpu_hours for each in shared),
        gpu_hours_remaining=_sum(each.gpu_hours for each in left),
        cost=_sum(each.cost for each in whole),
        cost_saved=_sum(each.cost for each in shared),
        cost_remaining=_sum(each.cost for each in left),
    )


def _tokens_saved(nodes: Sequence[Node]) -> dict[str, int]:
    """By digest: the tokens of each node that paths through it would train again if each trained its own.

    A path leads from the root to a leaf, once for each variant of the leaf; one that forks off uses a part of a node.
    """
    parents = {node.plan.parent.digest for node in nodes if node.plan.parent is not None}
    used = {node.plan.digest: 0 for node in nodes}
    for leaf in (node for node in nodes if node.plan.digest not in parents):
        path = leaf.plan.path
        ends = [*(child.start_tokens for child in path[1:]), leaf.plan.end_tokens]
        for plan, end in zip(path, ends, strict=True):
            used[plan.digest] += len(leaf.variants) * (end - plan.start_tokens)
    return {node.plan.digest: max(0, used[node.plan.digest] - node.plan.tokens) for node in nodes}


def _sum(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if any(value is None for value in known) else sum(value for value in known if value is not None)
