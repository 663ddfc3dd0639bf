"""What planning/memory.py reckons against the tensors that the real model and the real engine keep."""

import gc
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.engine import conftest
from tests.engine.conftest import Trainer, cluster
from tests.matrix import pairs_of
from tinyllama.config.schema import ClusterConfig, ModelConfig, Precision, RunConfig
from tinyllama.engine import deepspeed_config
from tinyllama.model.llama import build_model
from tinyllama.planning import memory
from tinyllama.planning.flops import num_parameters
from tinyllama.planning.memory import Memory, estimate_memory

InRanks = Callable[..., list[Any]]
Estimate = Callable[[ModelConfig, ClusterConfig], Memory]

BF16 = Precision.bf16
MODEL = ModelConfig(  # large enough for stage 3 to cut its matrices, its proportions those of the real model
    name="test",
    vocab_size=5000,
    hidden_size=320,
    intermediate_size=864,
    num_layers=4,
    num_heads=5,
    num_kv_heads=1,
    seq_len=64,
)
STATES = ("parameters", "gradients", "master", "optimizer", "buffers")


@pytest.fixture
def estimate(compose: Callable[..., tuple[RunConfig, ...]]) -> Estimate:
    config = compose("stage=basic")[-1]
    return lambda model, cluster: estimate_memory(replace(config, model=model, cluster=cluster))


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """In proportion to the model, as in a real one; 200 MB would hide everything else."""
    monkeypatch.setattr(memory, "BUCKET_ELEMENTS", 1_000_000)
    monkeypatch.setattr(deepspeed_config, "BUCKET_ELEMENTS", 1_000_000)


@pytest.fixture
def train_on(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModelConfig], None]:
    """Have trainers train a model of other sizes than the usual."""

    def choose(model: ModelConfig) -> None:
        for name, value in (("MODEL", model), ("VOCAB", model.vocab_size), ("SEQ", model.seq_len)):
            monkeypatch.setattr(conftest, name, value)

    return choose


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Of their storages, each counted once."""
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def living_tensors() -> list[torch.Tensor]:
    """With memory: what the compiler calls tensors has none."""
    gc.collect()
    return [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]


def living_bytes(model: torch.nn.Module) -> int:
    """Of all tensors that Python reaches, and of gradients that only C++ holds."""
    return bytes_of(
        [*living_tensors(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]
    )


def kept_at_the_loss(layout: ClusterConfig, processes: int) -> int:
    """Bytes that a rank holds after the second forward pass of its second step."""
    before = living_bytes(torch.nn.Module())
    trainer = Trainer(layout, samples=2 * layout.micro_batch * processes)
    trainer.step(0)
    counted: list[int] = []
    hook = trainer.model.register_forward_hook(lambda *_: counted.append(living_bytes(trainer.model)))
    trainer.step(1)
    hook.remove()
    return counted[-1] - before


@pytest.mark.slow
@pytest.mark.parametrize(
    "processes, layout",
    [
        (2, cluster(precision=BF16)),
        (4, cluster(zero_stage=2)),
        (1, cluster(zero_stage=3)),
        (2, cluster(zero_stage=3, precision=BF16)),
        *(
            pytest.param(processes, layout, marks=pytest.mark.soak)
            for processes, layout in [
                (1, cluster(precision=BF16)),
                (4, cluster(precision=BF16)),
                (2, cluster()),
                (2, cluster(zero_stage=2, precision=BF16)),
                (4, cluster(zero_stage=3)),
            ]
        ),
        (4, cluster(zero_stage=3, shard_within_node=True, precision=BF16)),
    ],
    ids=lambda value: (
        f"stage {value.zero_stage} {value.precision.value} hpZ={value.shard_within_node}"
        if isinstance(value, ClusterConfig)
        else str(value)
    ),
)
def test_the_states_of_every_stage_are_those_of_the_engine(
    in_ranks: InRanks, estimate: Estimate, train_on: Any, processes: int, layout: ClusterConfig
) -> None:
    train_on(replace(MODEL, seq_len=8))  # so short that activations are nothing
    nodes = 2 if layout.shard_within_node else 1
    reckoned = estimate(MODEL, replace(layout, nodes=nodes, processes=processes // nodes))
    expected = sum(getattr(reckoned, name) for name in STATES)
    counted = max(in_ranks(processes, kept_at_the_loss, replace(layout, micro_batch=1), processes))
    assert counted == pytest.approx(expected, rel=0.1)


def saved_bytes(model: torch.nn.Module, tokens: torch.Tensor) -> int:
    """What a forward pass keeps for its backward pass, besides what was there before it."""
    saved: list[torch.Tensor] = []
    before = {tensor.untyped_storage().data_ptr() for tensor in living_tensors()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.detach())  # the graph keeps this function: with its own outputs it would never be freed
        return saved[-1]

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = model(tokens)
    kept = [*saved, *living_tensors()]  # selective checkpointing keeps in a store of its own
    del losses
    return bytes_of(tensor for tensor in kept if tensor.untyped_storage().data_ptr() not in before)


@pytest.mark.slow
@pairs_of(
    checkpointing=[False, True, "selective"],
    precision=[Precision.fp32, BF16],
    kv_heads=[1, 5],
    loss=["whole", "chunked"],
)
def test_the_activations_are_those_that_autograd_saves(
    estimate: Estimate, kv_heads: int, precision: Precision, checkpointing: bool | str, loss: str
) -> None:
    sizes = replace(MODEL, num_kv_heads=kv_heads)
    layout = cluster(processes=1, micro_batch=3, precision=precision, activation_checkpointing=checkpointing)
    model = build_model(sizes, "sdpa", torch.device("cpu"), checkpointing, loss)
    model.initialize(seed=0)
    if precision is BF16:
        model.bfloat16()
    tokens = torch.randint(sizes.vocab_size, (3, sizes.seq_len + 1))
    logits = 3 * sizes.seq_len * sizes.vocab_size * model.head.weight.element_size() if loss == "whole" else 0
    saved = saved_bytes(model, tokens)
    assert saved - logits == pytest.approx(estimate(sizes, layout).activations, rel=0.02)


def highest(layout: ClusterConfig) -> int:
    """Bytes at the peak of a whole step, on a single rank."""
    before = living_bytes(torch.nn.Module())
    trainer = Trainer(layout, samples=2 * layout.micro_batch)
    trainer.engine.step([conftest.batch(0, samples=1)[:, :3]] * 2, 1e-2)  # makes the optimizer's state, cheaply
    rest = living_bytes(trainer.model) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.step(1)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return rest + peak


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        cluster(precision=BF16),
        cluster(activation_checkpointing="selective"),
        cluster(zero_stage=2, precision=BF16, activation_checkpointing=True),
        cluster(zero_stage=3, activation_checkpointing=True),
        cluster(zero_stage=3, loss="chunked"),
        *(
            pytest.param(layout, marks=pytest.mark.soak)
            for layout in [
                cluster(precision=BF16, activation_checkpointing=True),
                cluster(),
                cluster(zero_stage=3, precision=BF16),
                cluster(precision=BF16, activation_checkpointing="selective"),
                cluster(precision=BF16, activation_checkpointing=True, loss="chunked"),
            ]
        ),
    ],
    ids=lambda value: f"stage {value.zero_stage} {value.precision.value} {value.activation_checkpointing} {value.loss}",
)
def test_the_total_is_the_peak_of_a_whole_step(
    in_ranks: InRanks, estimate: Estimate, train_on: Any, layout: ClusterConfig
) -> None:
    model = replace(MODEL, num_layers=2)
    train_on(model)
    layout = replace(layout, processes=1, micro_batch=4)
    counted = in_ranks(1, highest, layout)[0]
    assert counted == pytest.approx(estimate(model, layout).total, rel=0.1)


def trained(layout: ClusterConfig) -> tuple[list[tuple[float, float]], bool]:
    """Losses and gradient norms, and whether ZeRO has cut the model's matrices."""
    trainer = Trainer(layout)
    return trainer.train(0, 3), trainer.model.head.weight.numel() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "processes, layout",
    [
        (1, cluster(precision=BF16)),
        (2, cluster(zero_stage=2)),
        (2, cluster(zero_stage=3, precision=BF16)),
        (4, cluster(zero_stage=3, shard_within_node=True)),
    ],
    ids=["stage 1", "stage 2", "stage 3", "stage 3 within nodes"],
)
def test_recomputing_activations_changes_no_bit_of_losses_and_gradients(
    in_ranks: InRanks, processes: int, layout: ClusterConfig
) -> None:
    plain, cut = in_ranks(processes, trained, layout)[0]
    assert cut == (layout.zero_stage == 3)
    assert in_ranks(processes, trained, replace(layout, activation_checkpointing=True))[0] == (plain, cut)
    selective = in_ranks(processes, trained, replace(layout, activation_checkpointing="selective"))[0]
    if layout.zero_stage < 3:
        assert selective == (plain, cut)
    else:  # a block's weights are gathered together, and its gradients summed over the ranks in another order
        assert selective[0] == [pytest.approx(each, rel=1e-6) for each in plain] and selective[1] == cut


@pytest.mark.slow
def test_a_checkpoint_weighs_12_bytes_a_parameter(in_ranks: InRanks, train_on: Any, tmp_path: Path) -> None:
    train_on(MODEL)
    in_ranks(1, lambda: Trainer(cluster()).saved(tmp_path / "checkpoint"))
    weight = sum(path.stat().st_size for path in (tmp_path / "checkpoint").iterdir())
    assert weight == pytest.approx(12 * num_parameters(MODEL), rel=0.01)


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", [False, True, "selective"])
@pytest.mark.parametrize("loss", ["whole", "chunked"])
def test_the_total_is_what_a_gpu_allocates(
    in_ranks: InRanks, estimate: Estimate, train_on: Any, checkpointing: bool | str, loss: str
) -> None:
    train_on(MODEL)
    layout = cluster(
        processes=1, micro_batch=24, precision=BF16, activation_checkpointing=checkpointing, loss=loss, compile=False,
        gpu="the one at hand",
    )  # fmt: skip

    def allocated() -> int:
        trainer = Trainer(layout, samples=2 * layout.micro_batch)
        trainer.step(0)
        torch.cuda.reset_peak_memory_stats()
        trainer.step(1)
        return torch.cuda.max_memory_allocated()

    assert in_ranks(1, allocated)[0] == pytest.approx(estimate(MODEL, layout).total, rel=0.1)
