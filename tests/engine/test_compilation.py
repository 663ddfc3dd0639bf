"""Compiled models by real Inductor in real ranks: the same training, one graph, a cache that others use too."""

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.conftest import MODEL, OPTIMIZER, Trainer, batch, call_in_ranks, cluster
from tests.forked import in_child
from tinyllama.config.schema import ClusterConfig, ModelConfig, Precision
from tinyllama.engine import startup
from tinyllama.engine.compilation import CACHE, compile_model, compiles
from tinyllama.engine.zero import ZeroEngine
from tinyllama.errors import ConfigError
from tinyllama.model.attention_choice import choose
from tinyllama.model.llama import Llama, build_model
from tinyllama.world import World

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("compilation")]  # one worker compiles, once

InRanks = Callable[..., list[Any]]
CPU, GPU = torch.device("cpu"), torch.device("cuda")

COUNTED = ("aot_autograd", "inductor", "graph_break", "stats")
"""Of what torch counts while it compiles."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(autouse=True)
def cached_for_this_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread compiles: each rank would start a pool of processes."""
    import torch._inductor.config

    monkeypatch.setenv(CACHE, str(cache))
    with torch._inductor.config.patch(compile_threads=1):
        yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def first_run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the compiler counted in the first run with `cache`: stage 3, whose blocks share one graph."""
    with pytest.MonkeyPatch.context() as patch, torch._inductor.config.patch(compile_threads=1):
        patch.setenv(CACHE, str(cache))
        return call_in_ranks(tmp_path_factory.mktemp("first"), 1, compile_a_step)[0]


def compile_a_step() -> dict[str, int]:
    torch._dynamo.utils.counters.clear()
    Trainer(cluster(compile=True, zero_stage=3)).train(0, 1)
    return counters()["inductor"]


def near(curve: Sequence[tuple[float, float]]) -> Any:
    return pytest.approx([value for pair in curve for value in pair], rel=2e-5)


def flat(curve: Sequence[tuple[float, float]]) -> list[float]:
    return [value for pair in curve for value in pair]


def counters() -> dict[str, dict[str, int]]:
    from torch._dynamo.utils import counters

    return {name: dict(counters[name]) for name in COUNTED}


def built() -> Llama:
    model = build_model(MODEL, "sdpa", CPU)
    model.initialize(0)
    return model


def train(layout: ClusterConfig) -> dict[str, Any]:
    """Six steps; between them, losses and logits of batches of other sizes."""
    trainer = Trainer(layout)
    if layout.compile:
        torch._dynamo.utils.counters.clear()
    curve = trainer.train(0, 1)
    after_first = counters() if layout.compile else {}
    losses = trainer.engine.losses(batch(5, samples=3))
    logits = trainer.engine.logits(batch(5, samples=5)[:, :7])
    curve += trainer.train(1, 6)
    return {
        "curve": curve,
        "losses": losses,
        "logits": logits,
        "names": [name for name, _ in trainer.model.named_parameters()],
        "after first": after_first,
        "after all": counters() if layout.compile else {},
    }


@pytest.mark.parametrize(
    "processes, settings",
    [
        (2, {"zero_stage": 3}),
        *(
            pytest.param(processes, settings, marks=pytest.mark.soak)
            for processes, settings in [
                (2, {"zero_stage": 1}),
                (1, {"zero_stage": 2}),
                (2, {"zero_stage": 1, "activation_checkpointing": True}),
                (4, {"zero_stage": 3, "shard_within_node": True, "activation_checkpointing": True}),
            ]
        ),
    ],
    ids=["stage 3", "stage 1", "stage 2", "stage 1, checkpointing", "stage 3 within nodes, checkpointing"],
)
def test_a_compiled_model_trains_like_an_uncompiled_one_by_one_graph_from_the_first_step_on(
    first_run: dict[str, int], in_ranks: InRanks, processes: int, settings: dict[str, Any]
) -> None:
    plain = in_ranks(processes, train, cluster(**settings))[0]
    for compiled in in_ranks(processes, train, cluster(compile=True, **settings)):
        assert flat(compiled["curve"]) == near(plain["curve"])
        torch.testing.assert_close(compiled["losses"], plain["losses"], rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(compiled["logits"], plain["logits"], rtol=1e-3, atol=1e-4)
        assert compiled["names"] == plain["names"]
        assert compiled["after first"]["stats"]["unique_graphs"] == 1
        assert compiled["after all"] == compiled["after first"]
        assert not compiled["after all"]["graph_break"]


@pytest.mark.soak
def test_compiled_bf16_stays_near_fp32(in_ranks: InRanks) -> None:
    expected = in_ranks(1, train, cluster())[0]["curve"]
    compiled = in_ranks(1, train, cluster(compile=True, precision=Precision.bf16))[0]["curve"]
    assert flat(compiled) == pytest.approx(flat(expected), rel=3e-2)
    assert flat(compiled) != near(expected)


def test_a_checkpoint_of_a_compiled_run_is_gone_on_from_uncompiled_and_the_reverse(
    first_run: dict[str, int], in_ranks: InRanks, tmp_path: Path
) -> None:
    def go_on(compile: bool, turn: int) -> list[tuple[float, float]]:
        trainer = Trainer(cluster(compile=compile, zero_stage=3), seed=turn)
        if turn:
            trainer.engine.load(tmp_path / f"end-{turn - 1}")
        curve = trainer.train(turn, turn + 1)
        trainer.saved(tmp_path / f"end-{turn}")
        return curve

    curve = [in_ranks(1, go_on, compile, turn)[0][0] for turn, compile in enumerate((True, False, True))]
    assert flat(curve) == near(in_ranks(1, lambda: Trainer(cluster()).train(0, 3))[0])


def test_what_one_run_has_compiled_the_next_finds_on_the_disk(first_run: dict[str, int], in_ranks: InRanks) -> None:
    assert "fxgraph_cache_miss" in first_run
    (found,) = in_ranks(1, compile_a_step)
    assert found["fxgraph_cache_hit"] == 2 and "fxgraph_cache_miss" not in found  # forward, backward


def test_a_second_model_of_the_process_is_compiled_as_the_first_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is Dynamo's, whatever compiles its graphs."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    with torch._dynamo.config.patch(recompile_limit=1):
        for samples in (2, 3):
            model = built()
            compile_model(model, cluster(compile=True), World())
            model(batch(0, samples)).mean().backward()


def compile_a_kernel(factor: float) -> list[float]:
    """After a model has been prepared for the compiler, in a thread of the compiler's pool."""
    torch.set_num_threads(1)  # as ranks do: OpenMP's threads do not outlive a fork
    compile_model(built(), cluster(compile=True), World())
    return torch.compile(lambda values: factor * values + values.sin())(torch.arange(3.0)).tolist()


def test_ranks_forked_from_a_process_that_has_compiled_compile_too(in_ranks: InRanks) -> None:
    def here_and_in_ranks() -> list[list[float]]:
        with torch._inductor.config.patch(compile_threads=2):
            compile_a_kernel(0.5)
            return in_ranks(2, lambda: compile_a_kernel(1.5 + World.from_environment().rank))

    found = in_child(here_and_in_ranks)
    assert [values[2] for values in found] == pytest.approx([2 * factor + math.sin(2) for factor in (1.5, 2.5)])


# ---------------------------------------------------------------- where it cannot be


@pytest.fixture
def without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """As on a machine that has none, and on which nothing was compiled before."""
    import torch._inductor.config

    monkeypatch.setenv(CACHE, str(tmp_path / "empty"))
    with torch._inductor.config.patch({"cpp.cxx": (None, "/nowhere/g++")}):
        yield


def test_an_asked_for_compilation_without_a_compiler_is_one_error(without_a_compiler: None) -> None:
    model = built()
    compile_model(model, cluster(compile=True), World())
    with pytest.raises(ConfigError, match=r"cluster.compile=true: torch.compile fails: .*C\+\+.*cluster.compile=false"):
        model(batch(0))


def test_a_compilation_nobody_asked_for_that_fails_is_a_warning_and_the_model_goes_on_as_if_uncompiled(
    without_a_compiler: None, caplog: pytest.LogCaptureFixture
) -> None:
    for stage in (1, 3):
        model, plain = built(), built()
        compile_model(model, cluster(zero_stage=stage), World())
        for step in range(2):
            assert torch.equal(model(batch(step)), plain(batch(step)))
    model(batch(0)).mean().backward()
    assert model.head.weight.grad is not None
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2 and all("torch.compile fails, and the run goes on without" in text for text in warnings)


def test_memory_that_is_short_while_it_compiles_is_no_failure_of_the_compiler(
    without_a_compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*args: Any) -> None:
        raise torch.OutOfMemoryError("32 GiB")

    monkeypatch.setattr("torch._inductor.graph.GraphLowering.run", out_of_memory)
    model = built()
    compile_model(model, cluster(), World())
    with pytest.raises(torch.OutOfMemoryError, match="32 GiB"):
        model(batch(0))


@pytest.mark.parametrize(
    "setting, device, expected",
    [(None, CPU, False), (None, GPU, True), (True, CPU, True), (False, GPU, False)],
)
def test_null_compiles_on_gpus_alone(setting: bool | None, device: torch.device, expected: bool) -> None:
    assert compiles(cluster(compile=setting), device) is expected


def test_the_cache_lies_in_the_users_cache_folder_unless_another_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def cache_with(**environment: str) -> str:
        for name in ("XDG_CACHE_HOME", "HOME", CACHE):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        compile_model(built(), cluster(), World())
        return os.environ[CACHE]

    home, caches, blocked = tmp_path / "home", tmp_path / "caches", tmp_path / "file"
    blocked.write_text("")
    assert cache_with(HOME=str(home)) == str(home / ".cache" / "tinyllama" / "compiled")
    assert cache_with(HOME=str(home), XDG_CACHE_HOME=str(caches)) == str(caches / "tinyllama" / "compiled")
    assert cache_with(HOME=str(home), **{CACHE: str(tmp_path)}) == str(tmp_path)
    assert not caplog.records
    cache_with(XDG_CACHE_HOME=str(blocked))  # then it lies where torch wants it
    assert "is not kept for the next run" in caplog.text


# ---------------------------------------------------------------- on a GPU

SMALL = ModelConfig(
    name="small",
    vocab_size=1531,
    hidden_size=256,
    intermediate_size=704,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    seq_len=96,
)
STEPS, WINDOW, SAMPLES, MICRO_BATCH = 200, 20, 16, 4


def rows(step: int) -> Tensor:
    """Arithmetic sequences: int64 [SAMPLES, seq_len + 1], a function of the step alone."""
    generator = torch.Generator().manual_seed(step)
    start = torch.randint(SMALL.vocab_size, (SAMPLES, 1), generator=generator)
    stride = torch.randint(1, 5, (SAMPLES, 1), generator=generator)
    return (start + stride * torch.arange(SMALL.seq_len + 1)) % SMALL.vocab_size


def engine_of(layout: ClusterConfig, samples: int = SAMPLES) -> ZeroEngine:
    world = startup.initialize(layout)
    device = startup.device()
    bf16 = layout.precision is not Precision.fp32
    model = build_model(SMALL, choose(layout.attention, SMALL, layout.micro_batch, bf16, device), device)
    model.initialize(0)
    return ZeroEngine(model, OPTIMIZER, layout, samples // layout.micro_batch, world)


def curve(layout: ClusterConfig, order: Sequence[int]) -> Tensor:
    """Mean losses of WINDOW steps each, which train on the batches in this order."""
    engine = engine_of(layout)
    losses = []
    for position, step in enumerate(order):
        learning_rate = 1e-3 * min(1.0, (position + 1) / 20)
        losses.append(engine.step(rows(step).split(MICRO_BATCH), learning_rate).losses.mean().item())
    return torch.tensor(losses).view(-1, WINDOW).mean(dim=1)


@pytest.mark.gpu
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_loss_curve_of_compiled_bf16_lies_within_the_noise_of_plain_fp32(in_ranks: InRanks, stage: int) -> None:
    """The noise: what becomes of the same batches in fp32 when those of each window come in another order."""
    plain = cluster(
        zero_stage=stage, micro_batch=MICRO_BATCH, precision=Precision.fp32, attention="sdpa", compile=False
    )
    fast = cluster(zero_stage=stage, micro_batch=MICRO_BATCH, precision=Precision.bf16, attention="auto", compile=True)
    in_order = list(range(STEPS))
    shuffled = torch.arange(STEPS).view(-1, WINDOW)[
        :, torch.randperm(WINDOW, generator=torch.Generator().manual_seed(0))
    ]
    expected = in_ranks(1, curve, plain, in_order)[0]
    noise = (in_ranks(1, curve, plain, shuffled.flatten().tolist())[0] - expected).abs()
    found = in_ranks(1, curve, fast, in_order)[0]
    assert expected[-1] < 0.7 * expected[0]  # it learns, so that there is a curve to be near to
    assert (found - expected).abs().max() <= noise.max()


@pytest.mark.gpu
def test_no_micro_batch_waits_for_the_gpu_before_the_step_ends(in_ranks: InRanks) -> None:
    """The last of a step is judged on the host, and must wait; those before it are only queued."""

    class Watched(Sequence[Tensor]):
        """Whatever waits for the device after the first was asked for and before the last is, is an error."""

        def __init__(self, micro_batches: Sequence[Tensor]):
            self._micro_batches = [one.pin_memory() for one in micro_batches]

        def __len__(self) -> int:
            return len(self._micro_batches)

        def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
            one = self._micro_batches[index]
            torch.cuda.set_sync_debug_mode("error" if index < len(self) - 1 else "default")
            return one

    def step() -> None:
        engine = engine_of(cluster(micro_batch=MICRO_BATCH, precision=Precision.bf16, compile=True, attention="auto"))
        for warm_up in range(2):
            engine.step(rows(warm_up).split(MICRO_BATCH), 1e-3)
        try:
            engine.step(Watched(rows(2).split(MICRO_BATCH)), 1e-3)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    in_ranks(1, step)
