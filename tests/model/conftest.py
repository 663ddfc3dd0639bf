"""A small model, and Hugging Face's with the same weights."""

import pytest
import torch

from tinyllama.config.schema import ModelConfig
from tinyllama.model.llama import Llama, build_model

CPU = torch.device("cpu")


@pytest.fixture
def config() -> ModelConfig:
    return ModelConfig(
        name="test",
        vocab_size=97,
        hidden_size=64,
        intermediate_size=176,
        num_layers=3,
        num_heads=8,
        num_kv_heads=2,
        seq_len=48,
    )


@pytest.fixture
def model(config: ModelConfig) -> Llama:
    llama = build_model(config, "sdpa", CPU)
    llama.initialize(seed=1)
    return llama


@pytest.fixture
def tokens(config: ModelConfig) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(config.vocab_size, (3, config.seq_len + 1), generator=generator)
