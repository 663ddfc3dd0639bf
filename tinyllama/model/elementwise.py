"""What a block does between its matrices: RMSNorm, rotary positions, SwiGLU.

Each is bound by memory, so that what counts is how often tensors are read and written. A compiler fuses the plain
formulas, and GPUs have one. On CPUs, uncompiled, functions with a gradient written by hand do the same in fewer passes
than PyTorch's derivative of the formulas, norms in half as many, and keep less for the backward pass.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[..., hidden], [hidden] -> like x."""
    return _RMSNorm.apply(x, weight, eps) if _by_hand(x) else functional.rms_norm(x, weight.shape, weight, eps)


def swiglu(gate_up: Tensor) -> Tensor:
    """Gates and what they let through, one after the other: [..., 2 * intermediate] -> [..., intermediate]."""
    if _by_hand(gate_up):
        return _SwiGLU.apply(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def rotary(qkv: Tensor, cosines: Tensor, sines: Tensor, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of which the first two know their positions.

    Args:
        qkv: [batch, length, heads + 2 * kv_heads, head_size].
        cosines, sines: of each position's angles, [length, 1, head_size / 2].

    Returns:
        [batch, length, heads or kv_heads, head_size] each.
    """
    if _by_hand(qkv):
        return _Rotary.apply(qkv, cosines, sines, kv_heads)
    heads = qkv.shape[2] - 2 * kv_heads
    positioned, values = qkv.split((heads + kv_heads, kv_heads), dim=2)
    first, second = positioned.chunk(2, dim=-1)
    turned = torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)
    queries, keys = turned.split((heads, kv_heads), dim=2)
    return queries, keys, values


def _by_hand(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


class _RMSNorm(torch.autograd.Function):
    """In fp32 inside, whatever the type of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scales = norms.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scales)
        return (x * scales).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scales = ctx.saved_tensors
        gradient, factors = gradient.float(), weight.float()
        products = (x * scales).mul_(gradient)
        # How much the norm itself answers to x: along x, as much as the weighted gradient points there.
        along = (products @ factors)[..., None].mul_(scales.square()).div_(-x.shape[-1])
        of_x = (gradient * factors).mul_(scales).addcmul_(x, along)
        return of_x.to(x.dtype), products.flatten(0, -2).sum(0).to(weight.dtype), None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        result = torch.empty_like(gate_up)
        of_gate, of_up = result.chunk(2, dim=-1)
        torch.mul(functional.silu(gate), gradient, out=of_up)
        torch.ops.aten.silu_backward(gradient * up, gate, grad_input=of_gate)
        return result


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cosines: Tensor, sines: Tensor, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cosines, sines)
        positioned, values = qkv[:, :, :-kv_heads], qkv[:, :, -kv_heads:]
        turned = torch.empty(positioned.shape, dtype=qkv.dtype)
        _turn(positioned, cosines, sines, out=turned)
        return turned[:, :, :-kv_heads], turned[:, :, -kv_heads:], values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        cosines, sines = ctx.saved_tensors
        queries, keys, values = gradients
        sizes = [gradient.shape[2] for gradient in gradients]
        result = queries.new_empty(*queries.shape[:2], sum(sizes), queries.shape[3])
        of_queries, of_keys, of_values = result.split(sizes, dim=2)
        for gradient, out in ((queries, of_queries), (keys, of_keys)):
            _turn(gradient, cosines, -sines, out)
        of_values.copy_(values)
        return result, None, None, None


def _turn(x: Tensor, cosines: Tensor, sines: Tensor, out: Tensor) -> None:
    """Each head's first half against its second, by the position's angles: [batch, length, heads, head_size]."""
    first, second = x.chunk(2, dim=-1)
    of_first, of_second = out.chunk(2, dim=-1)
    torch.mul(first, cosines, out=of_first).addcmul_(second, sines, value=-1)
    torch.mul(second, cosines, out=of_second).addcmul_(first, sines)
