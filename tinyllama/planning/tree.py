"""The family as a tree: stages that mean the same are one node, parents come before children."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tinyllama.config.schema import RunConfig
from tinyllama.planning.plan import RunPlan


@dataclass(frozen=True)
class Job:
    """A stage that someone asked for."""

    overrides: tuple[str, ...]
    """What they typed."""
    path: tuple[RunConfig, ...]
    """The configs of its ancestors and its own, the root first."""
    plan: RunPlan
    continued: bool = False
    """Whether another stage of conf/ names it as its parent, so that the path need not end here."""


@dataclass(frozen=True)
class Node:
    """A run of the tree."""

    plan: RunPlan
    config: RunConfig
    variants: tuple[str, ...]
    """The variants whose path leads through it."""
    overrides: tuple[str, ...] | None = None
    """How someone asked for it; None for an ancestor that nobody asked for."""
    continued: bool = False
    """Whether another stage of conf/ names it as its parent; not known of what nobody asked for."""


def grow(jobs: Iterable[Job]) -> tuple[Node, ...]:
    """The nodes of all jobs and their ancestors, each digest once; parents before children, branch by branch.

    Where one forks off another, the other keeps its checkpoint there.
    """
    nodes: dict[str, Node] = {}
    for job in jobs:
        for plan, config in zip(job.plan.path, job.path, strict=True):
            node = nodes.get(plan.digest) or Node(plan, config, ())
            if plan is job.plan and node.overrides is None:
                node = replace(node, overrides=job.overrides, continued=job.continued)
            variants = dict.fromkeys((*node.variants, config.variant))
            nodes[plan.digest] = replace(node, variants=tuple(variants))
    for node in list(nodes.values()):
        if node.plan.parent is not None and node.plan.start_tokens != node.plan.parent.end_tokens:
            nodes[node.plan.parent.digest] = _with_milestone(nodes[node.plan.parent.digest], node.plan.start_tokens)
    place = {digest: index for index, digest in enumerate(nodes)}
    return tuple(sorted(nodes.values(), key=lambda node: [place[plan.digest] for plan in node.plan.path]))


def _with_milestone(node: Node, tokens: int) -> Node:
    checkpoint = node.config.checkpoint
    milestones = sorted({*checkpoint.milestones, tokens})
    return replace(node, config=replace(node.config, checkpoint=replace(checkpoint, milestones=milestones)))
