"""From the last hidden states to the loss of each sequence: one table of ways, which differ in time and memory alone.

Logits are large: one of a token for each entry of the vocabulary. None of the ways holds all of them in fp32 besides
the model's own precision.
"""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from tinyllama.errors import ConfigError, unknown

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""hidden states [tokens, hidden], head weight [vocab, hidden], targets int64 [tokens] -> fp32 [tokens]: of each token
its cross-entropy. Hidden states and weight are of one type."""


class Way(NamedTuple):
    run: Loss
    obstacle: Callable[[torch.device], str | None]
    """Why it cannot run on a device; None when it can."""


PIECE_ELEMENTS = {"cpu": 2**22, "cuda": 2**25}
"""Logits that are in fp32 at one time. On CPUs they stay in the cache, and the allocator has room for them at hand:
larger pieces come from the system anew each time, page by page."""


def sequence_losses(way: Loss, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of each sequence.

    Args:
        hidden: [batch, length, hidden].
        weight: the head's, [vocab, hidden].
        targets: int64 [batch, length].

    Returns:
        fp32 [batch].
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):  # it does not reach into backward passes that we write
        hidden, weight = (tensor.to(torch.get_autocast_dtype(kind)) for tensor in (hidden, weight))
    return way(hidden.flatten(0, 1), weight, targets.flatten()).view(targets.shape).mean(dim=1)


def _whole(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    if torch.compiler.is_compiling():  # the compiler reads logits once, and writes none in fp32
        return functional.cross_entropy(functional.linear(hidden, weight).float(), targets, reduction="none")
    return _Whole.apply(hidden, weight, targets)


def _chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return _Chunked.apply(hidden, weight, targets)


def _liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy  # optional, and slow to import

    return liger_fused_linear_cross_entropy(hidden, weight, targets, reduction="none", accum_dtype=torch.float32)


def _liger_obstacle(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"it needs a GPU, and this run is on {device.type}"
    if importlib.util.find_spec("liger_kernel") is None:
        return "the package liger-kernel is not installed"
    return None


LOSSES: dict[str, Way] = {
    "whole": Way(_whole, lambda device: None),
    "chunked": Way(_chunked, lambda device: None),
    "liger": Way(_liger, _liger_obstacle),
}
"""whole: all logits at once, in the model's precision. chunked: some tokens' at a time, and again in the backward
pass. liger: the same by the kernels of liger-kernel."""


def loss(name: str, device: torch.device) -> Loss:
    """The way `name`, ready to run on `device`; `auto` is for planning/memory.py to choose, and whole where nobody has.

    Raises:
        ConfigError: there is no such way, or it cannot run there.
    """
    name = "whole" if name == "auto" else name
    if name not in LOSSES:
        raise unknown("cluster.loss", name, ["auto", *LOSSES])
    obstacle = LOSSES[name].obstacle(device)
    if obstacle is not None:
        able = [other for other, way in LOSSES.items() if way.obstacle(device) is None]
        raise ConfigError(f"cluster.loss={name} cannot run: {obstacle}; use {' or '.join(able)}")
    return LOSSES[name].run


class _Whole(torch.autograd.Function):
    """Keeps the logits' gradient in their place, but for how much each token counts."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        logits = hidden @ weight.t()
        pieces = zip(*_pieces(len(weight), logits, targets), strict=True)
        trains = any(ctx.needs_input_grad)
        losses = torch.cat([_losses(piece, chosen, overwrite=trains) for piece, chosen in pieces])
        ctx.save_for_backward(hidden, weight, logits)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight, of_logits = ctx.saved_tensors
        of_logits.mul_(gradient[:, None])
        return of_logits @ weight, of_logits.t() @ hidden, None


class _Chunked(torch.autograd.Function):
    """Keeps nothing but its inputs.

    How much each token counts is known in the backward pass alone, so that nothing of it is made beforehand.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets)
        pieces = zip(*_pieces(len(weight), hidden, targets), strict=True)
        return torch.cat([_losses(piece @ weight.t(), chosen) for piece, chosen in pieces])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight, targets = ctx.saved_tensors
        of_hidden = []
        of_weight = torch.zeros_like(weight, dtype=torch.float32)
        for piece, chosen, counts in zip(*_pieces(len(weight), hidden, targets, gradient), strict=True):
            of_logits = piece @ weight.t()
            _losses(of_logits, chosen, overwrite=True)
            of_logits.mul_(counts[:, None])
            of_hidden.append(of_logits @ weight)
            of_weight += of_logits.t() @ piece
        return torch.cat(of_hidden), of_weight.to(weight.dtype), None


def _pieces(vocab: int, *of_tokens: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Each tensor cut into pieces of as many tokens as have PIECE_ELEMENTS logits."""
    tokens = max(1, PIECE_ELEMENTS.get(of_tokens[0].device.type, 2**25) // vocab)
    return (tensor.split(tokens) for tensor in of_tokens)


def _losses(logits: Tensor, targets: Tensor, overwrite: bool = False) -> Tensor:
    """[tokens, vocab], int64 [tokens] -> fp32 [tokens].

    Args:
        overwrite: write the losses' gradient over the logits, as exact as their type allows: at a target it is
            p - 1, which rounding p first would spoil where p is near 1.
    """
    targets = targets[:, None]
    log_probabilities = logits.float().log_softmax(dim=1)
    chosen = log_probabilities.gather(1, targets)
    if overwrite:
        torch.exp(log_probabilities, out=logits)
        logits.scatter_(1, targets, chosen.expm1().to(logits.dtype))
    return -chosen[:, 0]
