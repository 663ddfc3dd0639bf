"""The parts of a Llama: rotary positions, grouped-query attention, SwiGLU, and the head with its loss.

Projections that read the same input are one matrix: fewer, larger multiplications.
"""

import torch
from torch import Tensor, nn

from tinyllama.config.schema import ModelConfig
from tinyllama.model.attention import Attention
from tinyllama.model.elementwise import rms_norm, rotary, swiglu
from tinyllama.model.loss import Loss, sequence_losses
from tinyllama.model.recomputation import Run


def rotary_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position's angles, each fp32 [seq_len, 1, head_size / 2]."""
    exponents = torch.arange(0, config.head_size, 2, dtype=torch.float32) / config.head_size
    angles = torch.outer(torch.arange(config.seq_len, dtype=torch.float32), config.rope_theta**-exponents)
    return angles.cos()[:, None], angles.sin()[:, None]


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class GroupedQueryAttention(nn.Module):
    def __init__(self, config: ModelConfig, attention: Attention):
        super().__init__()
        self.heads, self.kv_heads, self.head_size = config.num_heads, config.num_kv_heads, config.head_size
        self.attention = attention
        self.qkv = nn.Linear(config.hidden_size, (self.heads + 2 * self.kv_heads) * self.head_size, bias=False)
        self.out = nn.Linear(self.heads * self.head_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, -1, self.head_size)
        queries, keys, values = rotary(qkv, cosines, sines, self.kv_heads)
        mixed = self.attention(queries, keys, values)
        return self.out(mixed.reshape(batch, length, -1))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(swiglu(self.gate_up(x)))


class Block(nn.Module):
    def __init__(self, config: ModelConfig, attention: Attention, run: Run):
        super().__init__()
        self._run = run
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = GroupedQueryAttention(config, attention)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        # Within the module, so that hooks around it are no part of what is computed again.
        return self._run(self._compute, x, cosines, sines)

    def _compute(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cosines, sines)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Head(nn.Linear):
    """Hidden states -> logits; with targets, -> the loss of each sequence.

    One module does both, since DeepSpeed's stage 3 gathers weights where a module is called.
    """

    def __init__(self, config: ModelConfig, loss: Loss):
        super().__init__(config.hidden_size, config.vocab_size, bias=False)
        self.loss = loss

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        return super().forward(x) if targets is None else sequence_losses(self.loss, x, self.weight, targets)
