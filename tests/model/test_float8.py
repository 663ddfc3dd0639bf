"""Training in float8 against bf16; on CPUs by torchao's emulation, which rounds as float8 does."""

import copy

import pytest
import torch
from torch import nn

from tinyllama.config.schema import ModelConfig
from tinyllama.errors import ConfigError
from tinyllama.model import float8
from tinyllama.model.float8 import use_float8
from tinyllama.model.llama import Llama, build_model

CPU = torch.device("cpu")
STEPS = 60

SIZES = ModelConfig(
    name="test", vocab_size=256, hidden_size=64, intermediate_size=176, num_layers=2, num_heads=4, num_kv_heads=2,
    seq_len=32,
)  # fmt: skip


@pytest.fixture
def llama() -> Llama:
    model = build_model(SIZES, "sdpa", CPU)
    model.initialize(seed=1)
    return model.bfloat16()


def converted(model: Llama, emulate: bool) -> Llama:
    pytest.importorskip("torchao", reason="torchao is not installed")
    model = copy.deepcopy(model)
    use_float8(model, emulate)
    return model


def curve(model: Llama) -> list[float]:
    """Losses of training on arithmetic sequences; weights are kept in fp32 beside the model's."""
    device = model.head.weight.device
    masters = [parameter.detach().float() for parameter in model.parameters()]
    adam = torch.optim.AdamW(masters, lr=3e-3, betas=(0.9, 0.95))
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(STEPS):
        start = torch.randint(SIZES.vocab_size, (8, 1), generator=generator)
        stride = torch.randint(1, 5, (8, 1), generator=generator)
        tokens = (start + stride * torch.arange(SIZES.seq_len + 1)) % SIZES.vocab_size
        loss = model(tokens.to(device)).mean()
        loss.backward()
        losses.append(float(loss.detach()))
        for master, parameter in zip(masters, model.parameters(), strict=True):
            assert parameter.grad is not None
            master.grad, parameter.grad = parameter.grad.float(), None
        adam.step()
        with torch.no_grad():
            for master, parameter in zip(masters, model.parameters(), strict=True):
                parameter.copy_(master)
    return losses


def assert_it_learns_as_well(float8: list[float], bf16: list[float]) -> None:
    assert bf16[-1] < bf16[0] - 2
    assert float8 != bf16, "nothing was rounded to float8"
    for ours, theirs in zip(float8, bf16, strict=True):
        assert ours == pytest.approx(theirs, abs=0.15)
    last = STEPS // 6
    assert sum(float8[-last:]) / last == pytest.approx(sum(bf16[-last:]) / last, abs=0.05)


def test_the_loss_falls_as_in_bf16(llama: Llama) -> None:
    assert_it_learns_as_well(curve(converted(llama, emulate=True)), curve(llama))


def test_weights_keep_their_names_and_go_from_one_to_the_other(llama: Llama) -> None:
    float8 = converted(llama, emulate=True)
    assert [name for name, _ in float8.named_parameters()] == [name for name, _ in llama.named_parameters()]
    llama.initialize(seed=2)
    float8.load_state_dict(llama.state_dict())
    assert all(torch.equal(float8.state_dict()[name], value) for name, value in llama.state_dict().items())
    llama.load_state_dict(float8.state_dict())


def test_the_head_and_what_16_does_not_divide_stay_as_they_are(llama: Llama) -> None:
    sizes = ModelConfig(
        name="test", vocab_size=256, hidden_size=64, intermediate_size=40, num_layers=1, num_heads=4, num_kv_heads=2,
        seq_len=32,
    )  # fmt: skip
    model = converted(build_model(sizes, "sdpa", CPU), emulate=True)
    changed = {name for name, module in model.named_modules() if type(module).__name__ == "Float8Linear"}
    assert changed == {"blocks.0.attention.qkv", "blocks.0.attention.out", "blocks.0.feed_forward.gate_up"}


def test_on_a_cpu_it_is_refused_before_torchao_is_looked_for(llama: Llama) -> None:
    with pytest.raises(ConfigError, match="cluster.precision=fp8 cannot run: it needs a GPU.*precision=bf16"):
        use_float8(llama)


def test_without_torchao_it_is_refused(llama: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="the package torchao is not installed"):
        use_float8(llama, emulate=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_the_loss_falls_as_in_bf16(llama: Llama) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip(f"{torch.cuda.get_device_name()} multiplies no float8")
    llama = llama.to("cuda")
    assert_it_learns_as_well(curve(converted(llama, emulate=False)), curve(llama))


@pytest.mark.parametrize(
    "layer, fits",
    [
        (nn.Linear(32, 48), True),
        (nn.Linear(40, 48), False),
        (nn.Linear(48, 40), False),
        (nn.Embedding(32, 48), False),
    ],
)
def test_matrices_whose_sizes_sixteen_divides_are_converted_and_nothing_else(layer: nn.Module, fits: bool) -> None:
    assert float8._fits(layer, "its name") is fits
