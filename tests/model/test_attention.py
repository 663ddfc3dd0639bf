"""Kernels against attention written out in fp32, and what is said when one cannot run."""

import math

import pytest
import torch

from tinyllama.errors import ConfigError
from tinyllama.model.attention import ATTENTIONS, attention, available

CPU = torch.device("cpu")

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]


def written_out(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Softmax attention, each key-value head serving several query heads in a row."""
    group = queries.shape[2] // keys.shape[2]
    keys, values = (x.repeat_interleave(group, dim=2) for x in (keys, values))
    scores = torch.einsum("bihd,bjhd->bhij", queries, keys) / math.sqrt(queries.shape[-1])
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return torch.einsum("bhij,bjhd->bihd", scores.masked_fill(future, -math.inf).softmax(-1), values)


def with_gradients(kernel, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    inputs = [x.clone().requires_grad_() for x in inputs]
    output = kernel(*inputs)
    output.float().square().sum().backward()
    return [output.detach(), *(x.grad for x in inputs if x.grad is not None)]


@pytest.mark.parametrize("kv_heads", [8, 2, 1])
def test_sdpa_equals_attention_written_out(kv_heads: int) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 33, heads, 16) for heads in (8, kv_heads, kv_heads)]
    for ours, expected in zip(
        with_gradients(attention("sdpa", CPU), inputs), with_gradients(written_out, inputs), strict=True
    ):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_gpu) for name in ATTENTIONS])
def test_each_kernel_on_a_gpu_is_as_near_to_fp32_as_bf16_allows(name: str) -> None:
    gpu = torch.device("cuda")
    obstacle = available(name, gpu)
    if obstacle is not None:
        pytest.skip(obstacle)
    torch.manual_seed(0)
    inputs = [torch.randn(2, 256, heads, 64, device=gpu, dtype=torch.bfloat16) for heads in (32, 4, 4)]
    ours = with_gradients(attention(name, gpu), inputs)
    expected = with_gradients(written_out, [x.float() for x in inputs])
    for one, other in zip(ours, expected, strict=True):
        error = (one.float() - other).norm() / other.norm()
        assert error < 0.01


def test_a_kernel_that_cannot_run_is_refused_with_the_reason_and_one_that_can() -> None:
    with pytest.raises(ConfigError, match="cluster.attention=flash_attn cannot run: it needs a GPU.*use sdpa"):
        attention("flash_attn", CPU)


def test_an_unknown_kernel_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="cluster.attention=flash_atn is not known; did you mean flash_attn"):
        attention("flash_atn", CPU)


def test_flash_attention_in_fp32_is_refused_before_it_is_loaded() -> None:
    x = torch.zeros(1, 2, 1, 8)
    with pytest.raises(ConfigError, match="set cluster.precision=bf16"):
        ATTENTIONS["flash_attn"].run(x, x, x)
