"""ModelConfig -> the Llama decoder with its loss. Plain PyTorch; the engine trains it."""

import math

import torch
from torch import Tensor, nn

from tinyllama.config.schema import ModelConfig
from tinyllama.model.attention import Attention, attention
from tinyllama.model.layers import Block, Head, RMSNorm, rotary_tables
from tinyllama.model.loss import Loss, loss
from tinyllama.model.recomputation import Run, runner


class Llama(nn.Module):
    """A decoder of ModelConfig's sizes; its forward pass is the training loss."""

    cosines: Tensor
    sines: Tensor

    def __init__(self, config: ModelConfig, attention: Attention, run: Run, loss: Loss):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, attention, run) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = Head(config, loss)
        cosines, sines = rotary_tables(config)
        self.register_buffer("cosines", cosines, persistent=False)
        self.register_buffer("sines", sines, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mean next-token cross-entropy of each sequence: int64 [batch, length + 1] -> fp32 [batch]."""
        return self.head(self._hidden(tokens[:, :-1]), tokens[:, 1:])

    def logits(self, tokens: Tensor) -> Tensor:
        """int64 [batch, length] -> [batch, length, vocab_size], length at most seq_len."""
        return self.head(self._hidden(tokens))

    def _hidden(self, tokens: Tensor) -> Tensor:
        """int64 [batch, length] -> what the head reads, [batch, length, hidden_size]."""
        x = self.embedding(tokens)
        cosines, sines = (table[: tokens.shape[1]].to(x.dtype) for table in (self.cosines, self.sines))
        for block in self.blocks:
            x = block(x, cosines, sines)
        return self.norm(x)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """The original's random weights; drawn on the CPU, so that they depend on `seed` alone."""
        generator = torch.Generator().manual_seed(seed)
        width, depth = self.config.hidden_size, self.config.num_layers
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
                continue
            into_residual = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
            deviation = 1 / math.sqrt(width) / depth if into_residual else math.sqrt(2 / (5 * width))
            parameter.copy_(torch.randn(parameter.shape, generator=generator).mul_(deviation))


def build_model(
    config: ModelConfig,
    attention_name: str,
    device: torch.device,
    activation_checkpointing: bool | str = False,
    loss_name: str = "whole",
) -> Llama:
    """A Llama on `device`, its weights not yet meaningful: call `initialize` or load a checkpoint.

    Args:
        activation_checkpointing: what each block keeps for the backward pass; see model/recomputation.py.
        loss_name: a way of model/loss.py.

    Raises:
        ConfigError: the attention kernel or the loss is unknown or cannot run there.
    """
    kernel, way = attention(attention_name, device), loss(loss_name, device)
    with device:
        return Llama(config, kernel, runner(activation_checkpointing), way)


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Of all weights, in the model's order, by arithmetic: a model without memory takes seconds to make."""
    width, inner = config.hidden_size, config.intermediate_size
    block = {
        "attention_norm": (width,),
        "attention.qkv": ((config.num_heads + 2 * config.num_kv_heads) * config.head_size, width),
        "attention.out": (width, width),
        "feed_forward_norm": (width,),
        "feed_forward.gate_up": (2 * inner, width),
        "feed_forward.down": (width, inner),
    }
    blocks = {f"blocks.{index}.{part}": shape for index in range(config.num_layers) for part, shape in block.items()}
    ends = {"norm": (width,), "head": (config.vocab_size, width)}
    shapes = {"embedding": (config.vocab_size, width), **blocks, **ends}
    return {f"{name}.weight": shape for name, shape in shapes.items()}
