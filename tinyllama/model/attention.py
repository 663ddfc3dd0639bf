"""Causal attention kernels: one table of them, and the reason when one cannot run here."""

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tinyllama.errors import ConfigError, unknown

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""queries [batch, length, heads, head_size], keys and values [batch, length, kv_heads, head_size] -> like queries."""


class Kernel(NamedTuple):
    run: Attention
    obstacle: Callable[[torch.device], str | None]
    """Why the kernel cannot run on a device; None when it can."""


def _sdpa(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    mixed = functional.scaled_dot_product_attention(
        queries.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        is_causal=True,
        enable_gqa=queries.shape[2] != keys.shape[2],
    )
    return mixed.transpose(1, 2)


def _flash_attn(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    if queries.dtype == torch.float32:
        raise ConfigError("cluster.attention=flash_attn computes in bf16 only; set cluster.precision=bf16")
    from flash_attn import flash_attn_func  # optional, and slow to import

    return flash_attn_func(queries, keys, values, causal=True)


def _flash_attn_obstacle(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"it needs a GPU, and this run is on {device.type}"
    if importlib.util.find_spec("flash_attn") is None:
        return "the package flash-attn is not installed"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"it needs an Ampere GPU or newer, and this is {torch.cuda.get_device_name(device)}"
    return None


ATTENTIONS: dict[str, Kernel] = {
    "sdpa": Kernel(_sdpa, lambda device: None),
    "flash_attn": Kernel(_flash_attn, _flash_attn_obstacle),
}


def available(name: str, device: torch.device) -> str | None:
    """Why the kernel `name` cannot run on `device`; None when it can.

    Raises:
        ConfigError: there is no such kernel.
    """
    if name not in ATTENTIONS:
        raise unknown("cluster.attention", name, ATTENTIONS)
    return ATTENTIONS[name].obstacle(device)


def attention(name: str, device: torch.device) -> Attention:
    """The kernel `name`, ready to run on `device`.

    Raises:
        ConfigError: there is no such kernel, or it cannot run there.
    """
    obstacle = available(name, device)
    if obstacle is not None:
        able = [other for other in ATTENTIONS if available(other, device) is None]
        raise ConfigError(f"cluster.attention={name} cannot run: {obstacle}; use {' or '.join(able)}")
    return ATTENTIONS[name].run
