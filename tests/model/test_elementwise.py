"""The functions with gradients written by hand, beside PyTorch's derivative of the plain formulas."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tinyllama.model import elementwise
from tinyllama.model.elementwise import rms_norm, rotary, swiglu

KV_HEADS = 2
Function = Callable[..., tuple[Tensor, ...]]


def norm(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    return (rms_norm(x, weight, 1e-5),)


def gated(gate_up: Tensor) -> tuple[Tensor, ...]:
    return (swiglu(gate_up),)


def positioned(qkv: Tensor, angles: Tensor) -> tuple[Tensor, ...]:
    return rotary(qkv, angles.detach().cos(), angles.detach().sin(), KV_HEADS)


CASES: dict[str, tuple[Function, list[tuple[int, ...]]]] = {
    "norm": (norm, [(3, 5, 24), (24,)]),
    "gated": (gated, [(3, 5, 48)]),
    "positioned": (positioned, [(3, 5, 8 + 2 * KV_HEADS, 6), (5, 1, 3)]),
}


def outcome(function: Function, inputs: list[Tensor]) -> list[Tensor]:
    """What it gives and the gradients of what it was given, of which each part counts differently."""
    given = [tensor.clone().requires_grad_() for tensor in inputs]
    results = function(*given)
    torch.manual_seed(1)
    sum((result.float() * torch.randn(result.shape)).sum() for result in results).backward()  # type: ignore[union-attr]
    return [*(result.detach() for result in results), *(tensor.grad for tensor in given if tensor.grad is not None)]


def inputs(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape).to(dtype) for shape in shapes]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 3e-7), (torch.bfloat16, 8e-3)])
def test_results_and_gradients_are_those_of_the_plain_formula_in_fp32(
    name: str, dtype: torch.dtype, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, shapes = CASES[name]
    given = inputs(shapes, dtype)
    ours = outcome(function, given)
    monkeypatch.setattr(elementwise, "_by_hand", lambda x: False)
    expected = outcome(function, [tensor.double() for tensor in given])
    assert len(ours) == len(expected)
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == dtype
        assert (one.double() - other).norm() < bound * other.norm()


@pytest.mark.parametrize("name", CASES)
def test_nothing_but_its_inputs_and_a_number_per_token_is_kept_for_the_backward_pass(name: str) -> None:
    function, shapes = CASES[name]
    given = [tensor.requires_grad_() for tensor in inputs(shapes, torch.float32)]
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        function(*given)
    large = [tensor for tensor in kept if tensor.numel() > 2 * 3 * 5]
    assert kept and all(any(tensor.data_ptr() == each.data_ptr() for each in given) for tensor in large)


def test_inputs_and_incoming_gradients_are_left_as_they_are() -> None:
    for function, shapes in CASES.values():
        given = inputs(shapes, torch.float32)
        before = [tensor.clone() for tensor in given]
        results = function(*(tensor.requires_grad_() for tensor in given))
        gradients = [torch.randn(result.shape) for result in results]
        gradients_before = [gradient.clone() for gradient in gradients]
        torch.autograd.backward(results, gradients)
        assert all(torch.equal(*pair) for pair in zip(given, before, strict=True))
        assert all(torch.equal(*pair) for pair in zip(gradients, gradients_before, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_second_derivatives_are_refused(name: str) -> None:
    function, shapes = CASES[name]
    given = [tensor.requires_grad_() for tensor in inputs(shapes, torch.float32)]
    total = sum((result.square().sum() for result in function(*given)), torch.zeros(()))
    (gradient,) = torch.autograd.grad(total, given[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_compiler_sees_the_plain_formulas() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    for function, shapes in CASES.values():
        given = [tensor.requires_grad_() for tensor in inputs(shapes, torch.float32)]
        torch.compile(function, backend=backend, fullgraph=True)(*given)
    assert len(graphs) == len(CASES)
    assert not any("autograd" in str(node.target) for graph in graphs for node in graph.graph.nodes)
