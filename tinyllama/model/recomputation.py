"""What of a block is kept for the backward pass, and what is computed again in it: time against memory.

Gradients are the same bit for bit: what is computed again is computed by the same kernels. Nothing in a block is
random, so that there is no state of generators to go back to.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Run = Callable[..., Tensor]
"""(what a block computes, *its inputs) -> what that gives."""

_aten = torch.ops.aten
_KEPT = {
    _aten.mm.default,
    _aten._scaled_mm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
}
_KEPT_NAMESPACES = ("flash_attn", "flash_attn_3", "tinyllama")
"""Of the packages' attention kernels, and of ours around them."""


def runner(activation_checkpointing: bool | str) -> Run:
    """How blocks are run: False keeps all that the backward pass reads; True of each block its input alone;
    "selective" what matrices and attention gave as well, so that norms, rotary positions and SwiGLU alone are computed
    again.
    """
    if not activation_checkpointing:
        return _plainly
    common: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if activation_checkpointing == "selective":
        common["context_fn"] = _selective
    return partial(checkpoint, **common)


def _plainly(compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    return compute(*inputs)


def _selective() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operator in _KEPT or getattr(operator, "namespace", None) in _KEPT_NAMESPACES
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
