"""Parameters and floating-point operations of a model, by arithmetic."""

from tinyllama.config.schema import ModelConfig


def num_parameters(config: ModelConfig) -> int:
    """All weights; the embedding and the output projection are not tied."""
    kv_size = config.num_kv_heads * config.head_size
    attention = config.hidden_size * (2 * config.hidden_size + 2 * kv_size)
    feed_forward = 3 * config.hidden_size * config.intermediate_size
    block = attention + feed_forward + 2 * config.hidden_size
    return config.num_layers * block + (2 * config.vocab_size + 1) * config.hidden_size


def flops_per_token(config: ModelConfig, causal: bool = False) -> int:
    """Forward and backward of one token: 6 for each weight that multiplies (the input embedding is looked up), and
    12 x layers x hidden x seq_len for attention, by the convention of published utilisations; `causal` counts only
    the half of the attention matrix that is not masked.
    """
    weights = num_parameters(config) - config.vocab_size * config.hidden_size
    attention = 12 * config.num_layers * config.hidden_size * config.seq_len
    return 6 * weights + (attention // 2 if causal else attention)
