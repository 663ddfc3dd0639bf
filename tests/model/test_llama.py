"""The decoder against Hugging Face's, and its random weights against the original's."""

import math
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tinyllama.config.schema import ModelConfig
from tinyllama.model.hf import from_hf, hf_config, to_hf
from tinyllama.model.llama import Llama, build_model, parameter_shapes
from tinyllama.planning.flops import num_parameters

CPU = torch.device("cpu")


@pytest.fixture
def twin(hugging_face: type, model: Llama, config: ModelConfig) -> torch.nn.Module:
    """Hugging Face's model with large random weights, which `model` is given too."""
    from transformers import LlamaConfig

    theirs = hugging_face(LlamaConfig(**hf_config(config)))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.load_state_dict(from_hf(theirs.state_dict(), config))
    return theirs


def test_logits_loss_and_gradients_equal_those_of_hugging_face(
    model: Llama, twin: torch.nn.Module, tokens: torch.Tensor, config: ModelConfig
) -> None:
    theirs = twin(tokens[:, :-1]).logits
    torch.testing.assert_close(model.logits(tokens[:, :-1]), theirs, atol=1e-5, rtol=1e-5)

    expected = torch.nn.functional.cross_entropy(theirs.flatten(0, 1), tokens[:, 1:].flatten())
    loss = model(tokens).mean()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)

    loss.backward()
    expected.backward()
    gradients = to_hf({name: parameter.grad for name, parameter in model.named_parameters()}, config)
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-4)


def test_names_go_to_hugging_face_and_back_without_a_change(
    model: Llama, twin: torch.nn.Module, config: ModelConfig
) -> None:
    theirs = to_hf(model.state_dict(), config)
    assert {name: value.shape for name, value in theirs.items()} == {
        name: value.shape for name, value in twin.state_dict().items()
    }
    back = from_hf(theirs, config)
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name], value) for name, value in model.state_dict().items())


def test_the_forward_pass_gives_one_loss_per_sequence_in_fp32(model: Llama, tokens: torch.Tensor) -> None:
    together, apart = model(tokens), torch.cat([model(row[None]) for row in tokens])
    assert together.shape == (3,)
    assert model.bfloat16()(tokens).dtype == torch.float32
    torch.testing.assert_close(together, apart)


def test_no_position_sees_what_comes_after_it(model: Llama, tokens: torch.Tensor) -> None:
    changed = tokens.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % 97
    before, after = model.logits(tokens[:, :-1]), model.logits(changed[:, :-1])
    torch.testing.assert_close(before[:, :20], after[:, :20])
    assert not torch.allclose(before[:, 20:], after[:, 20:])


def test_random_weights_are_those_of_the_original(config: ModelConfig) -> None:
    config.hidden_size, config.vocab_size = 256, 1000
    model = build_model(config, "sdpa", CPU)
    model.initialize(seed=3407)
    assert num_parameters(config) == sum(parameter.numel() for parameter in model.parameters())
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter))
            continue
        into_residual = "attention.out" in name or "down" in name
        deviation = 1 / math.sqrt(256) / 3 if into_residual else math.sqrt(2 / (5 * 256))
        assert parameter.std().item() == pytest.approx(deviation, rel=0.02), name
        assert abs(parameter.mean().item()) < deviation / 20, name


def test_random_weights_follow_the_seed_alone(config: ModelConfig) -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        model = build_model(config, "sdpa", CPU)
        model.initialize(seed)
        return [parameter for parameter in model.parameters() if parameter.ndim == 2]

    assert all(torch.equal(one, other) for one, other in zip(weights(1), weights(1), strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(weights(1), weights(2), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputed_activations_give_the_same_gradients_bit_for_bit(
    config: ModelConfig, tokens: torch.Tensor, dtype: torch.dtype
) -> None:
    found = []
    for checkpointing in (False, True, "selective"):
        model = build_model(config, "sdpa", CPU, checkpointing)
        model.initialize(seed=1)
        model.to(dtype)
        calls: list[object] = []
        model.blocks[1].feed_forward_norm.register_forward_pre_hook(lambda *_, calls=calls: calls.append(None))
        model(tokens).mean().backward()
        assert len(calls) == (2 if checkpointing else 1)
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    plain, *recomputed = found
    assert all(torch.equal(plain[name], each[name]) for each in recomputed for name in plain)


def test_selective_recomputation_multiplies_no_matrix_and_attends_to_nothing_again(
    config: ModelConfig, tokens: torch.Tensor
) -> None:
    class Executed(TorchDispatchMode):
        """Outermost, it sees what no other mode answers from its store."""

        def __init__(self) -> None:
            super().__init__()
            self.count: Counter[str] = Counter()

        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            self.count[operator.name()] += 1
            return operator(*args, **kwargs or {})

    def operators(checkpointing: bool | str) -> Counter[str]:
        model = build_model(config, "sdpa", CPU, checkpointing)
        model.initialize(seed=1)
        with Executed() as executed:
            model(tokens).mean().backward()
        return executed.count

    plain, whole, selective = map(operators, (False, True, "selective"))
    attention = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert plain["aten::mm"] == selective["aten::mm"] < whole["aten::mm"]
    assert plain[attention] == selective[attention] == config.num_layers < whole[attention]
    assert plain["aten::silu"] < selective["aten::silu"] == whole["aten::silu"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend, checkpointing, loss",
    [
        ("aot_eager", False, "chunked"),
        ("aot_eager", True, "whole"),
        ("aot_eager", "selective", "chunked"),
        *(
            pytest.param("inductor", checkpointing, loss, marks=pytest.mark.soak)
            for checkpointing in (False, True, "selective")
            for loss in ("whole", "chunked")
        ),
    ],
)
def test_a_training_step_compiles_into_one_graph(
    config: ModelConfig, tokens: torch.Tensor, backend: str, checkpointing: bool | str, loss: str
) -> None:
    def gradients(compiled: bool) -> list[torch.Tensor]:
        model = build_model(config, "sdpa", CPU, checkpointing, loss)
        model.initialize(seed=1)
        forward = (
            torch.compile(model.forward, fullgraph=True, dynamic=False, backend=backend) if compiled else model.forward
        )
        forward(tokens).mean().backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    torch.compiler.reset()
    for ours, expected in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-4)
    torch.compiler.reset()


def test_shapes_by_arithmetic_are_those_of_the_model_in_its_order(config: ModelConfig, model: Llama) -> None:
    assert list(parameter_shapes(config).items()) == [
        (name, tuple(parameter.shape)) for name, parameter in model.named_parameters()
    ]
