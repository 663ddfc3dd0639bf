"""The table of attention kernels, the reason when one cannot run here, and what `auto` takes."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tinyllama.errors import ConfigError, unknown
from tinyllama.model import attention_kernels as kernels

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""queries [batch, length, heads, head_size], keys and values [batch, length, kv_heads, head_size] -> like queries."""

AUTO = "auto"
"""The fastest by measurement (attention_choice.py); where nobody has measured, sdpa."""


class Kernel(NamedTuple):
    run: Attention
    obstacle: Callable[[torch.device], str | None]
    """Why the kernel cannot run on a device; None when it can."""
    fp32: bool = False
    """Whether it computes in fp32 as well as in bf16."""


_ampere = kernels.needs(lambda capability: capability >= (8, 0), "an Ampere GPU or newer")

ATTENTIONS: dict[str, Kernel] = {
    "sdpa": Kernel(kernels.sdpa, lambda device: None, fp32=True),
    "cudnn": Kernel(kernels.cudnn, _ampere),
    "flash": Kernel(kernels.flash, _ampere),
    "flash_attn": Kernel(
        kernels.flash_attn,
        # Its compiled part: the fourth version installs itself below the same name.
        kernels.needs(lambda c: c >= (8, 0), "an Ampere GPU or newer", "flash-attn", ("flash_attn_2_cuda",)),
    ),
    "flash_attn_3": Kernel(
        kernels.flash_attn_3,
        kernels.needs(lambda c: c[0] == 9, "a Hopper GPU", "flash-attn-3", ("flash_attn_interface",)),
    ),
    "flash_attn_4": Kernel(
        kernels.flash_attn_4,
        kernels.needs(
            lambda c: c[0] in (9, 10), "a Hopper or Blackwell GPU", "flash-attn-4", ("flash_attn.cute", "cutlass")
        ),
    ),
}


def available(name: str, device: torch.device, bf16: bool = True) -> str | None:
    """Why the kernel `name` cannot run on `device`; None when it can.

    Raises:
        ConfigError: there is no such kernel.
    """
    if name not in ATTENTIONS:
        raise unknown("cluster.attention", name, (AUTO, *ATTENTIONS))
    kernel = ATTENTIONS[name]
    return kernel.obstacle(device) or (None if bf16 or kernel.fp32 else "it computes in bf16 only")


def attention(name: str, device: torch.device) -> Attention:
    """The kernel `name`, ready to run on `device`.

    Raises:
        ConfigError: there is no such kernel, or it cannot run there.
    """
    if name == AUTO:
        return ATTENTIONS["sdpa"].run
    check(name, device)
    return ATTENTIONS[name].run


def check(name: str, device: torch.device, bf16: bool = True) -> None:
    """
    Raises:
        ConfigError: there is no kernel `name`, or it cannot run on `device` in this precision.
    """
    obstacle = available(name, device, bf16)
    if obstacle is not None:
        able = [other for other in ATTENTIONS if available(other, device, bf16) is None]
        raise ConfigError(f"cluster.attention={name} cannot run: {obstacle}; use {' or '.join((*able, AUTO))}")
