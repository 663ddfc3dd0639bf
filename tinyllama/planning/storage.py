"""What checkpoints take on the disk, by arithmetic."""

from tinyllama.config.schema import RunConfig
from tinyllama.planning.flops import num_parameters
from tinyllama.planning.plan import RunPlan

_BYTES_PER_PARAMETER = 12
"""The weight and AdamW's two moments, each in fp32."""


def checkpoint_bytes(config: RunConfig) -> int:
    """Of one; what its headers and its manifest take besides is little."""
    return _BYTES_PER_PARAMETER * num_parameters(config.model)


def checkpoints_bytes(plan: RunPlan, config: RunConfig) -> int:
    """Of all that a run keeps at its end: the latest, the milestones that it passes, and the end."""
    checkpoint = config.checkpoint
    due = plan.end_tokens // int(checkpoint.every_tokens) - plan.start_tokens // int(checkpoint.every_tokens)
    milestones = [tokens for tokens in checkpoint.milestones if plan.start_tokens < tokens < plan.end_tokens]
    return (min(checkpoint.keep, due) + len(milestones) + 1) * checkpoint_bytes(config)
