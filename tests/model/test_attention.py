"""Kernels against attention written out in fp32, what is said when one cannot run, and which one `auto` takes."""

import logging
import math
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from tinyllama.config.schema import ModelConfig
from tinyllama.errors import ConfigError
from tinyllama.model import attention_choice, attention_kernels
from tinyllama.model.attention import ATTENTIONS, Attention, attention, available
from tinyllama.model.attention_choice import Shape, Trial, choose, compare, fastest, told

CPU, GPU = torch.device("cpu"), torch.device("cuda")
BF16 = torch.bfloat16

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]
on_a_gpu = pytest.mark.parametrize("name", [pytest.param(name, marks=needs_gpu) for name in ATTENTIONS])


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


def drawn(heads: int, kv_heads: int, length: int, head_size: int, **kind: Any) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, length, count, head_size, **kind) for count in (heads, kv_heads, kv_heads)]


@pytest.fixture(autouse=True)
def nothing_is_compiled_into_the_next_test():
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("kv_heads", [8, 2, 1])
def test_sdpa_equals_attention_written_out(kv_heads: int) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 33, heads, 16) for heads in (8, kv_heads, kv_heads)]
    for ours, expected in zip(
        with_gradients(attention("sdpa", CPU), inputs), with_gradients(written_out, inputs), strict=True
    ):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@on_a_gpu
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


LAYOUTS = [(32, 4, 2048, 64), (12, 4, 512, 64), (8, 8, 256, 128), (8, 1, 100, 64), (4, 2, 63, 64), (16, 2, 7, 64)]
"""Query heads, key-value heads, length, head size."""


@on_a_gpu
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_each_kernel_on_a_gpu_is_near_fp32_for_any_heads_and_lengths(
    name: str, layout: tuple[int, int, int, int], compiled: bool
) -> None:
    obstacle = available(name, GPU)
    if obstacle is not None:
        pytest.skip(obstacle)
    inputs = drawn(*layout, device=GPU, dtype=BF16)
    run = torch.compile(attention(name, GPU), fullgraph=True, dynamic=False) if compiled else attention(name, GPU)
    expected = with_gradients(written_out, [x.float() for x in inputs])
    for one, other in zip(with_gradients(run, inputs), expected, strict=True):
        assert (one.float() - other).norm() < 0.01 * other.norm()


@pytest.mark.slow
def test_torchs_kernels_are_one_graph_of_the_same_results() -> None:
    inputs = drawn(8, 2, 33, 16, dtype=BF16)
    for run in (attention_kernels.sdpa, attention_kernels.flash):  # the CPU has a kernel of that name, too
        compiled = torch.compile(run, fullgraph=True, dynamic=False)
        for ours, expected in zip(with_gradients(compiled, inputs), with_gradients(run, inputs), strict=True):
            torch.testing.assert_close(ours, expected)


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


@pytest.mark.parametrize("name", [name for name, kernel in ATTENTIONS.items() if not kernel.fp32])
def test_each_kernel_that_computes_in_bf16_alone_refuses_fp32(name: str) -> None:
    x = torch.zeros(1, 2, 1, 8)
    with pytest.raises(ConfigError, match=f"cluster.attention={name} computes in bf16 only"):
        ATTENTIONS[name].run(x, x, x)


@pytest.mark.parametrize(
    "name, capability, modules, expected",
    [
        ("cudnn", (9, 0), (), None),
        ("flash", (7, 5), (), "it needs an Ampere GPU or newer, and this is a GPU"),
        ("flash_attn", (8, 0), ("flash_attn_2_cuda",), None),
        ("flash_attn", (9, 0), ("flash_attn",), "the package flash-attn is not installed"),  # the fourth version alone
        ("flash_attn_3", (9, 0), ("flash_attn_interface",), None),
        ("flash_attn_3", (10, 0), ("flash_attn_interface",), "it needs a Hopper GPU, and this is a GPU"),
        ("flash_attn_4", (10, 0), ("flash_attn.cute", "cutlass"), None),
        ("flash_attn_4", (9, 0), ("flash_attn", "cutlass"), "the package flash-attn-4 is not installed"),
        (
            "flash_attn_4",
            (8, 0),
            ("flash_attn.cute", "cutlass"),
            "it needs a Hopper or Blackwell GPU, and this is a GPU",
        ),
    ],
)
def test_obstacles_are_the_gpus_age_and_missing_packages(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    capability: tuple[int, int],
    modules: tuple[str, ...],
    expected: str | None,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(attention_kernels, "_is_installed", lambda module: module in modules)
    assert available(name, GPU) == expected
    if expected is None:
        assert available(name, GPU, bf16=False) == "it computes in bf16 only"


def test_a_part_of_a_package_is_found_without_importing_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parcel" / "inside").mkdir(parents=True)
    (tmp_path / "parcel" / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert attention_kernels._is_installed("parcel") and attention_kernels._is_installed("parcel.inside")
    assert not attention_kernels._is_installed("parcel.outside") and not attention_kernels._is_installed(
        "no_parcel.inside"
    )


# ---------------------------------------------------------------- flash-attn-4, by a stand-in that computes on CPUs


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the package's name with its two halves, as its public source gives them."""

    def probabilities(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """And the log-sum-exps, both fp32."""
        scores = torch.einsum("bihd,bjhd->bhij", q, k).float() / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
        return scores.softmax(-1), scores.logsumexp(-1)

    def forward(q, k, v, causal=False, return_lse=False):
        assert causal and return_lse
        p, lse = probabilities(q.float(), widened(k, q))
        return torch.einsum("bhij,bjhd->bihd", p, widened(v, q)).to(q.dtype), lse

    def backward(q, k, v, out, dout, lse, causal=False):
        assert causal and out.shape == q.shape
        p, expected = probabilities(q.float(), widened(k, q))
        torch.testing.assert_close(lse, expected)
        dp = torch.einsum("bihd,bjhd->bhij", dout.float(), widened(v, q))
        ds = p * (dp - (dp * p).sum(-1, keepdim=True)) / math.sqrt(q.shape[-1])
        dq = torch.einsum("bhij,bjhd->bihd", ds, widened(k, q))
        dk = torch.einsum("bhij,bihd->bjhd", ds, q.float()).unflatten(2, (k.shape[2], -1)).sum(3)
        dv = torch.einsum("bhij,bihd->bjhd", p, dout.float()).unflatten(2, (v.shape[2], -1)).sum(3)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)

    def widened(x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return x.float().repeat_interleave(q.shape[2] // x.shape[2], dim=2)

    interface = ModuleType("flash_attn.cute.interface")
    interface.__dict__.update(_flash_attn_fwd=forward, _flash_attn_bwd=backward)
    for name, module in (("flash_attn", ModuleType("flash_attn")), ("flash_attn.cute", ModuleType("flash_attn.cute"))):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, interface.__name__, interface)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_the_operators_of_the_fourth_version_give_what_its_halves_give(stand_in: None, compiled: bool) -> None:
    run: Attention = attention_kernels.flash_attn_4
    inputs = drawn(8, 2, 33, 16, dtype=BF16)
    expected = with_gradients(written_out, [x.float() for x in inputs])
    ours = torch.compile(run, fullgraph=True, dynamic=False) if compiled else run
    for one, other in zip(with_gradients(ours, inputs), expected, strict=True):
        assert one.dtype == BF16
        assert (one.float() - other).norm() < 0.01 * other.norm()


def test_the_operators_keep_torchs_rules(stand_in: None) -> None:
    inputs = [x.requires_grad_() for x in drawn(4, 2, 9, 16, dtype=BF16)]
    torch.library.opcheck(torch.ops.tinyllama.flash_attn_4.default, inputs, rtol=1e-2, atol=1e-2)


# ---------------------------------------------------------------- the choice


def test_the_fastest_is_taken_when_it_is_clearly_faster_than_the_reference() -> None:
    trials = {"sdpa": Trial(1.0), "cudnn": Trial(0.5), "flash": Trial(0.4), "flash_attn": Trial(None, "is not there")}
    assert fastest(trials) == "flash"
    assert fastest({"sdpa": Trial(1.0), "flash": Trial(0.98)}) == "sdpa"  # noise
    assert fastest({"sdpa": Trial(None, "it failed"), "flash": Trial(None, "is not there")}) == "sdpa"
    assert fastest({"flash": Trial(None, "its output is off", is_wrong=True), "sdpa": Trial(1.0)}) == "sdpa"


def test_one_line_says_what_was_taken_and_why_and_what_could_not_run() -> None:
    trials = {
        "flash_attn": Trial(None, "it is not installed"),
        "sdpa": Trial(2.0),
        "cudnn": Trial(1.0),
        "flash": Trial(1.9),
    }
    assert told("cudnn", trials, "8 x 2048") == (
        "cudnn (8 x 2048): 2.00 times as fast as sdpa; 1.90 times as fast as flash; flash_attn: it is not installed"
    )


def test_kernels_that_err_or_fail_are_told_from_those_that_run_rightly() -> None:
    def too_large(*inputs: torch.Tensor) -> torch.Tensor:
        return 1.05 * attention_kernels.sdpa(*inputs)

    def wrong_gradient(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return attention_kernels.sdpa(queries, keys.detach() + 0 * keys, values)

    def not_a_number(*inputs: torch.Tensor) -> torch.Tensor:
        return attention_kernels.sdpa(*inputs) * math.nan

    kernels = {
        "flash": attention_kernels.flash,
        "large": too_large,
        "gradient": wrong_gradient,
        "nan": not_a_number,
        "cudnn": attention_kernels.cudnn,
        "sdpa": attention_kernels.sdpa,
    }
    before = torch.get_rng_state()
    trials = compare(kernels, Shape(2, 100, 8, 2, 16), BF16, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert {name for name, trial in trials.items() if trial.seconds is not None} == {"sdpa", "flash"}
    assert {name for name, trial in trials.items() if trial.is_wrong} == {"large", "gradient", "nan"}
    assert trials["large"].remark == "its output is 5.0% from that of sdpa"
    assert trials["gradient"].remark == "its keys' gradient is 100.0% from that of sdpa"
    assert trials["cudnn"].remark.startswith("it failed: No viable backend")


def test_auto_on_a_cpu_is_sdpa_and_measures_nothing(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_choice, "_measured", None)
    assert choose("auto", config, 8, bf16=True, device=CPU) == "sdpa"
    assert attention("auto", CPU) is ATTENTIONS["sdpa"].run


def test_the_same_sizes_are_measured_once(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Shape] = []
    monkeypatch.setattr(attention_choice, "_chosen", {})
    monkeypatch.setattr(attention_choice, "_agreed", lambda shape, *_: measured.append(shape) or "cudnn")
    for micro_batch in (4, 4, 8):
        assert choose("auto", config, micro_batch, bf16=True, device=torch.device("cuda")) == "cudnn"
    assert [shape.batch for shape in measured] == [4, 8]


def test_a_named_kernel_is_taken_or_refused_before_the_model_is_built(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert choose("cudnn", config, 8, bf16=True, device=GPU) == "cudnn"
    with pytest.raises(
        ConfigError, match="cluster.attention=cudnn cannot run: it computes in bf16 only; use sdpa or auto"
    ):
        choose("cudnn", config, 8, bf16=False, device=GPU)
    with pytest.raises(ConfigError, match="cluster.attention=cudn is not known; did you mean cudnn"):
        choose("cudn", config, 8, bf16=True, device=CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_auto_on_a_gpu_measures_once_and_says_what_it_took(
    config: ModelConfig, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = torch.device("cuda", torch.cuda.current_device())
    attention_choice._chosen.clear()
    caplog.set_level(logging.INFO, logger=attention_choice.__name__)
    name = choose("auto", config, 4, bf16=True, device=gpu)
    assert available(name, gpu) is None
    assert choose("auto", config, 4, bf16=True, device=gpu) == name
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(f"attention by {name} (4 x {config.seq_len} x 8/2 heads of 8 in bf16): ")
    assert choose("auto", config, 4, bf16=False, device=gpu) == "sdpa"
