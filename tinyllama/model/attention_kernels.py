"""Causal attention by torch's own kernels and by the flash-attention packages, all of one signature.

Each takes queries [batch, length, heads, head_size], keys and values [batch, length, kv_heads, head_size] and gives
what has the queries' shape. Several query heads in a row share a key-value head, which none of them copies on a GPU in
bf16. Under torch.compile each is part of one graph. The packages are optional, and imported when they are first used.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from tinyllama.errors import ConfigError


def sdpa(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """By the kernel that torch chooses."""
    mixed = functional.scaled_dot_product_attention(
        queries.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        is_causal=True,
        enable_gqa=queries.shape[2] != keys.shape[2],
    )
    return mixed.transpose(1, 2)


def cudnn(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    _must_be_bf16("cudnn", queries)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return sdpa(queries, keys, values)


def flash(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """By FlashAttention-2 as it is built into torch."""
    _must_be_bf16("flash", queries)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return sdpa(queries, keys, values)


def flash_attn(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """By the package flash-attn; it makes custom operators of its kernels itself."""
    _must_be_bf16("flash_attn", queries)
    from flash_attn import flash_attn_func  # slow to import

    return flash_attn_func(queries, keys, values, causal=True)


def flash_attn_3(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """By the package that flash-attention's folder `hopper` builds; it makes custom operators of its kernels itself."""
    _must_be_bf16("flash_attn_3", queries)
    from flash_attn_interface import flash_attn_func

    mixed = flash_attn_func(queries, keys, values, causal=True)
    return mixed[0] if isinstance(mixed, tuple) else mixed  # its first releases gave the log-sum-exp as well


def flash_attn_4(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """By the package flash-attn-4."""
    _must_be_bf16("flash_attn_4", queries)
    return _flash_attn_4(queries, keys, values)[0]


@torch.library.custom_op("tinyllama::flash_attn_4", mutates_args=())
def _flash_attn_4(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """What attention gives, and the log-sum-exp of each query's scores, fp32 [batch, heads, length].

    The package's own entry cannot be traced, so that its two halves are made operators here, as torch does where it
    uses them.
    """
    from flash_attn.cute.interface import _flash_attn_fwd

    mixed, log_sums, *_ = _flash_attn_fwd(queries, keys, values, causal=True, return_lse=True)
    return mixed.contiguous(), log_sums.contiguous()


@_flash_attn_4.register_fake
def _(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = queries.shape
    mixed = queries.new_empty(batch, length, heads, values.shape[-1])
    return mixed, queries.new_empty(batch, heads, length, dtype=torch.float32)


@torch.library.custom_op("tinyllama::flash_attn_4_backward", mutates_args=())
def _flash_attn_4_backward(
    gradient: Tensor, queries: Tensor, keys: Tensor, values: Tensor, mixed: Tensor, log_sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from flash_attn.cute.interface import _flash_attn_bwd

    ours = _flash_attn_bwd(queries, keys, values, mixed, gradient.contiguous(), log_sums, causal=True)
    return ours[0].contiguous(), ours[1].contiguous(), ours[2].contiguous()


@_flash_attn_4_backward.register_fake
def _(
    gradient: Tensor, queries: Tensor, keys: Tensor, values: Tensor, mixed: Tensor, log_sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return queries.new_empty(queries.shape), keys.new_empty(keys.shape), values.new_empty(values.shape)


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _flash_attn_4_backward(gradient, *ctx.saved_tensors)


_flash_attn_4.register_autograd(_gradients, setup_context=_keep)


def _must_be_bf16(name: str, queries: Tensor) -> None:
    casts = torch.is_autocast_enabled(queries.device.type)
    if queries.dtype == torch.float32 and not casts:
        raise ConfigError(f"cluster.attention={name} computes in bf16 only; set cluster.precision=bf16")


# ---------------------------------------------------------------- why one cannot run on a device


def needs(
    capabilities: Callable[[tuple[int, int]], bool], of: str, package: str | None = None, modules: tuple[str, ...] = ()
) -> Callable[[torch.device], str | None]:
    """An obstacle: what a kernel asks of the device, and which modules of which package must be there.

    Args:
        of: the GPUs that `capabilities` means, for people.
    """

    def obstacle(device: torch.device) -> str | None:
        if device.type != "cuda":
            return f"it needs a GPU, and this run is on {device.type}"
        if not all(map(_is_installed, modules)):
            return f"the package {package} is not installed"
        if not capabilities(torch.cuda.get_device_capability(device)):
            return f"it needs {of}, and this is {torch.cuda.get_device_name(device)}"
        return None

    return obstacle


def _is_installed(module: str) -> bool:
    """Whether it can be found; nothing is imported, for such packages take seconds."""
    package, _, part = module.partition(".")
    found = importlib.util.find_spec(package)
    if found is None or not part:
        return found is not None
    return any((Path(folder) / part).is_dir() for folder in found.submodule_search_locations or ())
