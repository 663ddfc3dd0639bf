"""The 1.1B model's figures are those of its card and of the published utilisation (56 % at 24,000 tokens/s)."""

import pytest

from tinyllama.config.schema import ModelConfig
from tinyllama.planning.flops import flops_per_token, num_parameters

TINYLLAMA = ModelConfig(
    name="tinyllama_1b",
    vocab_size=32000,
    hidden_size=2048,
    intermediate_size=5632,
    num_layers=22,
    num_heads=32,
    num_kv_heads=4,
    seq_len=2048,
)


def test_the_1b_model_has_the_published_number_of_parameters() -> None:
    assert num_parameters(TINYLLAMA) == 1_100_048_384


def test_both_conventions_of_operations_per_token_give_the_known_figures() -> None:
    assert flops_per_token(TINYLLAMA) == pytest.approx(7.314e9, rel=1e-4)
    assert flops_per_token(TINYLLAMA, causal=True) == pytest.approx(6.760e9, rel=1e-3)
    assert 24_000 * flops_per_token(TINYLLAMA) / 312e12 == pytest.approx(0.56, abs=0.005)
