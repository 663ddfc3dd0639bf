"""What pictures over tokens show: lives, each the way from a root to a leaf of the tree."""

from collections.abc import Sequence
from dataclasses import dataclass

from tinyllama.planning.plan import RunPlan
from tinyllama.planning.tree import Node


@dataclass(frozen=True)
class Stretch:
    """What a life takes of a stage: all of it, or what lies before the fork of the next one."""

    plan: RunPlan
    end_tokens: int

    @property
    def start_tokens(self) -> int:
        return self.plan.start_tokens

    @property
    def middle(self) -> int:
        return (self.start_tokens + self.end_tokens) // 2

    @property
    def end_position(self) -> int:
        """In samples from the stage's start."""
        return (self.end_tokens - self.start_tokens) // self.plan.seq_len

    @property
    def ramp(self) -> tuple[int, int] | None:
        """From where to where the mixture moves, in tokens of life; None where it stands still."""
        moves = self.plan.ramp_tokens and self.plan.start_weights != self.plan.end_weights
        return (self.start_tokens, min(self.end_tokens, self.start_tokens + self.plan.ramp_tokens)) if moves else None


@dataclass(frozen=True)
class Life:
    """A path of the tree that is drawn by itself."""

    titles: tuple[str, ...]
    """What people call it: variants."""
    leaf: RunPlan

    @property
    def start_tokens(self) -> int:
        return self.leaf.path[0].start_tokens

    @property
    def end_tokens(self) -> int:
        return self.leaf.end_tokens

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        path = self.leaf.path
        ends = [child.start_tokens for child in path[1:]] + [self.leaf.end_tokens]
        return tuple(Stretch(plan, end) for plan, end in zip(path, ends, strict=True))


def lives(nodes: Sequence[Node]) -> list[Life]:
    """A life for every node from whose end no other goes on; one that others only fork off is among them."""
    continued = {
        node.plan.parent.digest
        for node in nodes
        if node.plan.parent is not None and node.plan.start_tokens == node.plan.parent.end_tokens
    }
    return [Life(node.variants, node.plan) for node in nodes if node.plan.digest not in continued]
