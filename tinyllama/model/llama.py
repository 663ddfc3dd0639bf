"""ModelConfig -> the Llama decoder with its loss. Plain PyTorch; the engine trains it."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tinyllama.config.schema import ModelConfig
from tinyllama.model.attention import Attention, attention
from tinyllama.model.layers import Block, RMSNorm, rotary_tables


class Llama(nn.Module):
    """A decoder of ModelConfig's sizes; its forward pass is the training loss."""

    cosines: Tensor
    sines: Tensor

    def __init__(self, config: ModelConfig, attention: Attention, activation_checkpointing: bool = False):
        super().__init__()
        self.config = config
        self.activation_checkpointing = activation_checkpointing
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, attention) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        cosines, sines = rotary_tables(config)
        self.register_buffer("cosines", cosines, persistent=False)
        self.register_buffer("sines", sines, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mean next-token cross-entropy of each sequence: int64 [batch, length + 1] -> fp32 [batch]."""
        logits, targets = self.logits(tokens[:, :-1]), tokens[:, 1:]
        losses = functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        return losses.view(targets.shape).mean(dim=1)

    def logits(self, tokens: Tensor) -> Tensor:
        """int64 [batch, length] -> [batch, length, vocab_size], length at most seq_len."""
        x = self.embedding(tokens)
        cosines, sines = (table[: tokens.shape[1]].to(x.dtype) for table in (self.cosines, self.sines))
        for block in self.blocks:
            x = self._run(block, x, cosines, sines)
        return self.head(self.norm(x))

    def _run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        if not self.activation_checkpointing:
            return block(*inputs)
        # Nothing in a block is random, so that there is no state of generators to go back to.
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)

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
    config: ModelConfig, attention_name: str, device: torch.device, activation_checkpointing: bool = False
) -> Llama:
    """A Llama on `device`, its weights not yet meaningful: call `initialize` or load a checkpoint.

    Args:
        activation_checkpointing: keep of each block only its input, and compute the rest again in the backward pass.

    Raises:
        ConfigError: the attention kernel is unknown or cannot run there.
    """
    kernel = attention(attention_name, device)
    with device:
        return Llama(config, kernel, activation_checkpointing)


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
