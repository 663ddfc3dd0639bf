"""Matrices of the blocks multiply in float8, by torchao: tensorwise scaling. The only module that imports it.

Weights stay what they were, in the model's precision and under their names, so that checkpoints are those of bf16.
"""

import importlib.util
import logging

import torch
from torch import nn

from tinyllama.errors import ConfigError
from tinyllama.model.llama import Llama

DIVISOR = 16
"""Of both sizes of a matrix that the kernels can multiply."""


def use_float8(model: Llama, emulate: bool = False) -> None:
    """Have the linear layers of the blocks whose sizes are multiples of 16 compute in float8; the head does not.

    Args:
        emulate: round as float8 does, and multiply in the model's precision; runs everywhere, slowly.

    Raises:
        ConfigError: torchao is not installed, or the model is on no GPU that multiplies float8.
    """
    obstacle = _obstacle(model.head.weight.device, emulate)
    if obstacle is not None:
        raise ConfigError(f"cluster.precision=fp8 cannot run: {obstacle}; set cluster.precision=bf16")
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it warns of kernels that we do not use
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    convert_to_float8_training(model.blocks, module_filter_fn=_fits, config=Float8LinearConfig(emulate=emulate))


def _fits(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and all(size % DIVISOR == 0 for size in module.weight.shape)


def _obstacle(device: torch.device, emulate: bool) -> str | None:
    if not emulate and device.type != "cuda":
        return f"it needs a GPU, and this run is on {device.type}"
    if importlib.util.find_spec("torchao") is None:
        return "the package torchao is not installed (pip install 'tinyllama[gpu]')"
    if not emulate and torch.cuda.get_device_capability(device) < (8, 9):
        return f"it needs an Ada or Hopper GPU or newer, and this is {torch.cuda.get_device_name(device)}"
    return None
