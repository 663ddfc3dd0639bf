"""Every way to the loss against one written out in fp32, and what is said when one cannot run."""

from collections.abc import Callable

import pytest
import torch

from tinyllama.errors import ConfigError
from tinyllama.model import loss as module
from tinyllama.model.loss import LOSSES, loss, sequence_losses

CPU = torch.device("cpu")
BATCH, LENGTH, HIDDEN, VOCAB = 3, 16, 32, 97
WEIGHTS = (0.1, 2.0, -3.0)
"""How much each sequence counts: unlike, so that a gradient made without them would be wrong."""

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]
everywhere = pytest.mark.parametrize("name", ["whole", "chunked"])

Losses = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@pytest.fixture(autouse=True)
def pieces_of_seven_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of them smaller."""
    monkeypatch.setattr(module, "PIECE_ELEMENTS", {"cpu": 7 * VOCAB, "cuda": 7 * VOCAB})


def inputs(dtype: torch.dtype, device: torch.device = CPU, length: int = LENGTH) -> list[torch.Tensor]:
    torch.manual_seed(0)
    hidden, weight = torch.randn(BATCH, length, HIDDEN), torch.randn(VOCAB, HIDDEN)
    return [hidden.to(device, dtype), weight.to(device, dtype), torch.randint(VOCAB, (BATCH, length), device=device)]


def written_out(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    log_probabilities = (hidden.float() @ weight.float().t()).log_softmax(dim=-1)
    return -log_probabilities.gather(-1, targets[..., None])[..., 0].mean(dim=1)


def with_gradients(losses: Losses, hidden: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    found = losses(hidden, weight)
    (found * torch.tensor(WEIGHTS, device=found.device)).sum().backward()
    assert hidden.grad is not None and weight.grad is not None
    assert hidden.grad.dtype == hidden.dtype and weight.grad.dtype == weight.dtype
    return [found.detach(), hidden.grad, weight.grad]


def error(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float((ours.float() - expected.float()).norm() / expected.float().norm())


def compare(name: str, dtype: torch.dtype, device: torch.device, bound: float) -> None:
    hidden, weight, targets = inputs(dtype, device)
    ours = with_gradients(lambda h, w: sequence_losses(loss(name, device), h, w, targets), hidden, weight)
    expected = with_gradients(lambda h, w: written_out(h, w, targets), hidden.float(), weight.float())
    assert ours[0].dtype == torch.float32
    for one, other in zip(ours, expected, strict=True):
        assert error(one, other) < bound


@everywhere
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_losses_and_gradients_are_those_of_fp32_however_sequences_count(
    name: str, dtype: torch.dtype, bound: float
) -> None:
    compare(name, dtype, CPU, bound)


def test_the_heads_gradient_is_summed_over_many_pieces_as_exactly_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_ELEMENTS", {"cpu": VOCAB})  # a token each
    hidden, weight, targets = inputs(torch.bfloat16, length=512)

    def of_head(name: str) -> torch.Tensor:
        return with_gradients(lambda h, w: sequence_losses(loss(name, CPU), h, w, targets), hidden, weight)[2]

    exact = with_gradients(lambda h, w: written_out(h, w, targets), hidden.float(), weight.float())[2]
    assert error(of_head("chunked"), exact) < 1.2 * error(of_head("whole"), exact)


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_gpu) for name in LOSSES])
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-2), (torch.bfloat16, 1e-2)])  # fp32 may be TF32 inside
def test_each_way_on_a_gpu_is_as_near_to_fp32_as_its_precision_allows(
    name: str, dtype: torch.dtype, bound: float
) -> None:
    gpu = torch.device("cuda")
    if (obstacle := LOSSES[name].obstacle(gpu)) is not None:
        pytest.skip(obstacle)
    compare(name, dtype, gpu, bound)


@everywhere
def test_a_token_that_was_held_impossible_has_a_finite_loss(name: str) -> None:
    """Its probability is 0 in fp32."""
    hidden, weight, targets = inputs(torch.float32)
    hidden, expected = hidden * 100, written_out(hidden * 100, weight, targets)
    found = sequence_losses(loss(name, CPU), hidden, weight, targets)
    assert expected.max() > 200
    torch.testing.assert_close(found, expected)


@everywhere
def test_the_gradient_of_a_target_that_is_nearly_certain_is_not_rounded_away_in_bf16(name: str) -> None:
    """At it the gradient of the logits is p - 1, and p in bf16 is 1 from 0.998 on."""
    weight = torch.eye(VOCAB, HIDDEN)
    targets = torch.arange(LENGTH)[None]
    hidden = 12 * torch.eye(LENGTH, HIDDEN)[None]  # a probability of 0.9994
    given = [tensor.bfloat16() for tensor in (hidden, weight)]
    ours = with_gradients(lambda h, w: sequence_losses(loss(name, CPU), h, w, targets) * torch.ones(3, 1), *given)
    expected = with_gradients(lambda h, w: written_out(h, w, targets) * torch.ones(3, 1), hidden, weight)
    assert 1e-4 < expected[0].max() < 2e-3
    for one, other in zip(ours[1:], expected[1:], strict=True):
        assert error(one, other) < 1e-2


@everywhere
def test_second_derivatives_are_refused(name: str) -> None:
    hidden, weight, targets = inputs(torch.float32)
    hidden.requires_grad_()
    losses = sequence_losses(loss(name, CPU), hidden, weight, targets)
    (gradient,) = torch.autograd.grad(losses.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@everywhere
def test_autocast_reaches_into_the_backward_pass(name: str) -> None:
    hidden, weight, targets = inputs(torch.float32)

    def losses(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return sequence_losses(loss(name, CPU), hidden, weight, targets)

    expected = with_gradients(lambda h, w: written_out(h, w, targets), hidden, weight)
    for one, other in zip(with_gradients(losses, hidden, weight), expected, strict=True):
        assert 1e-5 < error(one, other) < 1e-2


@everywhere
def test_without_gradients_the_losses_are_the_same(name: str) -> None:
    hidden, weight, targets = inputs(torch.bfloat16)
    with torch.no_grad():
        found = sequence_losses(loss(name, CPU), hidden, weight, targets)
    expected = with_gradients(lambda h, w: sequence_losses(loss(name, CPU), h, w, targets), hidden, weight)[0]
    assert torch.equal(found, expected)


def test_chunks_keep_no_logits_for_the_backward_pass() -> None:
    hidden, weight, targets = inputs(torch.float32)
    for name, most in (("whole", BATCH * LENGTH * VOCAB), ("chunked", VOCAB * HIDDEN)):
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x.numel()) or x, lambda x: x):
            sequence_losses(loss(name, CPU), hidden, weight.clone().requires_grad_(), targets)
        assert max(saved) == most


def test_a_way_that_cannot_run_is_refused_with_the_reason_and_those_that_can() -> None:
    with pytest.raises(ConfigError, match="cluster.loss=liger cannot run: it needs a GPU.*; use whole or chunked"):
        loss("liger", CPU)


def test_an_unknown_way_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="cluster.loss=chunk is not known; did you mean chunked"):
        loss("chunk", CPU)
