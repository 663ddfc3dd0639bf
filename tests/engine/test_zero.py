"""The engine in real ranks: against a bare loop, across worlds and stages, through checkpoints."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.conftest import BATCH, MODEL, OPTIMIZER, Trainer, batch, cluster
from tinyllama.config.schema import ClusterConfig, Precision
from tinyllama.errors import DamageError
from tinyllama.model.llama import build_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
InRanks = Callable[..., list[Any]]

BF16 = Precision.bf16
LAYOUTS = {
    "stage 1, bf16": (2, cluster(zero_stage=1, precision=BF16)),
    "stage 2": (2, cluster(zero_stage=2)),
    "stage 3, bf16": (2, cluster(zero_stage=3, precision=BF16)),
    "stage 3 within nodes": (4, cluster(zero_stage=3, shard_within_node=True)),
}
layouts = pytest.mark.parametrize("processes, layout", LAYOUTS.values(), ids=LAYOUTS.keys())


def near(expected: Any) -> Any:
    return pytest.approx(expected, rel=2e-5)


def flat(curve: list[tuple[float, float]]) -> list[float]:
    return [value for pair in curve for value in pair]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def train(layout: ClusterConfig, steps: int) -> list[tuple[float, float]]:
    return Trainer(layout).train(0, steps)


def train_bare(steps: int) -> list[tuple[float, float]]:
    """The definition of what the engine does, on whole batches."""
    model = build_model(MODEL, "sdpa", torch.device("cpu"))
    model.initialize(0)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    curve = []
    for step in range(steps):
        loss = model(batch(step)).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.max_grad_norm)
        adam.step()
        adam.zero_grad()
        curve.append((loss.item(), norm.item()))
    return curve


@pytest.mark.parametrize(
    "processes, layout",
    [
        (1, cluster(zero_stage=1, micro_batch=4)),
        (2, cluster(zero_stage=1)),
        (4, cluster(zero_stage=1)),
        (1, cluster(zero_stage=2, micro_batch=8)),
        (2, cluster(zero_stage=3, micro_batch=1)),
        (4, cluster(zero_stage=3, shard_within_node=True)),
    ],
    ids=lambda value: None if isinstance(value, int) else f"stage {value.zero_stage} by {value.micro_batch}",
)
def test_losses_and_norms_are_those_of_a_bare_loop_on_any_world_and_micro_batch(
    in_ranks: InRanks, processes: int, layout: ClusterConfig
) -> None:
    curve = in_ranks(processes, train, layout, 4)[0]
    assert flat(curve) == near(flat(train_bare(4)))


def test_bf16_stays_near_fp32_at_every_stage(in_ranks: InRanks) -> None:
    expected = flat(train_bare(4))
    for stage in (1, 2, 3):
        curve = in_ranks(1, train, cluster(zero_stage=stage, precision=BF16), 4)[0]
        assert flat(curve) == pytest.approx(expected, rel=3e-2)
        assert flat(curve) != near(expected)


def test_losses_come_in_the_order_fed(in_ranks: InRanks) -> None:
    def first_losses() -> tuple[torch.Tensor, torch.Tensor]:
        trainer = Trainer(cluster(micro_batch=2))
        return trainer.engine.losses(batch(0)), trainer.step(0).losses

    alone, stepped = in_ranks(1, first_losses)[0]
    assert stepped.shape == (BATCH,)
    assert not stepped.requires_grad
    torch.testing.assert_close(stepped, alone)


@layouts
def test_a_resumed_run_repeats_the_unbroken_one_bit_for_bit(
    in_ranks: InRanks, tmp_path: Path, processes: int, layout: ClusterConfig
) -> None:
    def unbroken() -> list[tuple[float, float]]:
        trainer = Trainer(layout)
        trainer.train(0, 2)
        trainer.saved(tmp_path / "middle")
        curve = trainer.train(2, 4)
        trainer.saved(tmp_path / "end")
        return curve

    def resumed() -> list[tuple[float, float]]:
        trainer = Trainer(layout, seed=9)
        trainer.engine.load(tmp_path / "middle")
        curve = trainer.train(2, 4)
        trainer.saved(tmp_path / "end-again")
        return curve

    assert in_ranks(processes, unbroken)[0] == in_ranks(processes, resumed)[0]
    assert files(tmp_path / "end") == files(tmp_path / "end-again")


WITHIN = {"zero_stage": 3, "shard_within_node": True}


@pytest.mark.parametrize(
    "turns",
    [
        [(2, {"zero_stage": 3}), (1, {"zero_stage": 2}), (4, WITHIN), (2, {"zero_stage": 1}), (1, {"zero_stage": 3})],
        pytest.param(
            [
                *((processes, {"zero_stage": stage}) for processes in (2, 1, 4) for stage in (1, 2, 3)),
                *((4, WITHIN), (2, {"zero_stage": 1}), (4, {"zero_stage": 3}), (1, {"zero_stage": 2})),
            ],
            marks=pytest.mark.soak,
        ),
    ],
    ids=["each", "all"],
)
def test_a_checkpoint_of_any_world_and_stage_is_loaded_by_any_other(
    in_ranks: InRanks, tmp_path: Path, turns: list[tuple[int, dict[str, Any]]]
) -> None:
    """Each loads what the one before it has trained: no bit is lost, and the curve is that of one layout alone."""
    layouts = [(processes, cluster(**settings)) for processes, settings in turns]

    def go_on(layout: ClusterConfig, turn: int) -> list[tuple[float, float]]:
        trainer = Trainer(layout, seed=turn)
        if turn:
            trainer.engine.load(tmp_path / f"end-{turn - 1}")
            trainer.saved(tmp_path / f"copy-{turn - 1}")
        curve = trainer.train(turn, turn + 1)
        trainer.saved(tmp_path / f"end-{turn}")
        return curve

    curve = [in_ranks(processes, go_on, layout, turn)[0][0] for turn, (processes, layout) in enumerate(layouts)]
    assert flat(curve) == near(flat(in_ranks(2, train, cluster(), len(layouts))[0]))
    for turn in range(len(layouts) - 1):
        assert files(tmp_path / f"copy-{turn}") == files(tmp_path / f"end-{turn}"), layouts[turn + 1]


def test_stage_3_cuts_the_large_parameters_of_this_model_and_not_the_small_ones(in_ranks: InRanks) -> None:
    """So that the tests above go through both ways of keeping one."""

    def kept() -> dict[str, bool]:
        trainer = Trainer(cluster(zero_stage=3))
        trainer.train(0, 1)
        return {name: parameter.numel() > 0 for name, parameter in trainer.model.named_parameters()}

    whole = in_ranks(2, kept)[0]
    assert not whole["head.weight"] and whole["norm.weight"]
    assert {True, False} == {kept for name, kept in whole.items() if name.startswith("blocks.1.")}


def test_training_that_goes_on_does_not_reach_a_snapshot(in_ranks: InRanks, tmp_path: Path) -> None:
    def run() -> None:
        trainer = Trainer(cluster())
        trainer.train(0, 2)
        at_once = trainer.saved(tmp_path / "at-once")
        snapshot = trainer.engine.snapshot()
        trainer.train(2, 3)
        (tmp_path / "later").mkdir(exist_ok=True)
        snapshot.write(tmp_path / "later")
        assert trainer.saved(tmp_path / "after") and at_once.is_dir()

    in_ranks(2, run)
    assert files(tmp_path / "later") == files(tmp_path / "at-once") != files(tmp_path / "after")


def test_a_checkpoint_is_read_by_the_safetensors_library(in_ranks: InRanks, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    in_ranks(2, lambda: Trainer(cluster(zero_stage=3, precision=BF16)).saved(tmp_path / "start"))
    expected = build_model(MODEL, "sdpa", torch.device("cpu"))
    expected.initialize(0)
    state = load_file(tmp_path / "start" / "weights.safetensors")
    assert state.keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():  # fp32 from the first: not what bf16 leaves of them
        assert torch.equal(state[name], value), name
    assert json.loads((tmp_path / "start" / "optimizer.json").read_text()) == {"step": 0}
    assert not any(value.any() for value in load_file(tmp_path / "start" / "exp_avg.safetensors").values())


def test_a_child_goes_on_with_another_batch(in_ranks: InRanks, tmp_path: Path) -> None:
    def parent() -> None:
        trainer = Trainer(cluster())
        trainer.train(0, 2)
        trainer.saved(tmp_path / "parent")

    def child(layout: ClusterConfig) -> list[tuple[float, float]]:
        trainer = Trainer(layout, seed=9, samples=4 * BATCH)
        assert trainer.accumulation == 4 * BATCH // (layout.micro_batch * trainer.world.size)
        trainer.engine.load(tmp_path / "parent")
        return trainer.train(2, 4)

    in_ranks(2, parent)
    by_many, by_few = in_ranks(2, child, cluster())[0], in_ranks(1, child, cluster(micro_batch=16))[0]
    assert flat(by_many) == near(flat(by_few))


def test_learning_rate_and_decay_come_from_the_configuration_and_not_from_the_checkpoint(
    in_ranks: InRanks, tmp_path: Path
) -> None:
    def weights_after(weight_decay: float, learning_rate: float) -> dict[str, torch.Tensor]:
        trainer = Trainer(cluster(), seed=9, optimizer=replace(OPTIMIZER, weight_decay=weight_decay))
        trainer.engine.load(tmp_path / "start")
        trainer.step(2, learning_rate)
        return {name: value.clone() for name, value in trainer.model.named_parameters()}

    def start() -> dict[str, torch.Tensor]:
        trainer = Trainer(cluster())
        trainer.train(0, 2)
        trainer.saved(tmp_path / "start")
        return {name: value.clone() for name, value in trainer.model.named_parameters()}

    before = in_ranks(1, start)[0]
    still, free, held = (in_ranks(1, weights_after, *pair)[0] for pair in ((0.5, 0.0), (0.0, 1e-3), (0.5, 1e-3)))
    for name, value in before.items():
        assert torch.equal(still[name], value)
        assert not torch.equal(free[name], value)
        torch.testing.assert_close(free[name] - held[name], 1e-3 * 0.5 * value, atol=1e-7, rtol=1e-3)


def test_loading_weights_alone_starts_the_optimizer_anew(in_ranks: InRanks, tmp_path: Path) -> None:
    def parent() -> None:
        trainer = Trainer(cluster())
        trainer.train(0, 2)
        trainer.saved(tmp_path / "parent")

    def child() -> None:
        trainer = Trainer(cluster(), seed=9)
        trainer.engine.load(tmp_path / "parent", optimizer=False)
        trainer.saved(tmp_path / "child")

    in_ranks(1, parent)
    in_ranks(1, child)
    parents, childs = files(tmp_path / "parent"), files(tmp_path / "child")
    assert childs["weights.safetensors"] == parents["weights.safetensors"]
    assert json.loads(childs["optimizer.json"]) == {"step": 0}
    assert json.loads(parents["optimizer.json"]) == {"step": 2}


@pytest.mark.parametrize(
    "stage, precision",
    [
        (3, BF16),
        (1, Precision.fp32),
        pytest.param(1, BF16, marks=pytest.mark.soak),
        pytest.param(2, BF16, marks=pytest.mark.soak),
    ],
)
def test_a_gradient_that_is_not_finite_on_one_rank_leaves_no_trace_on_any(
    in_ranks: InRanks, tmp_path: Path, stage: int, precision: Precision
) -> None:
    layout = cluster(zero_stage=stage, precision=precision)

    def run(poisoned: bool) -> list[tuple[float, float]]:
        trainer = Trainer(layout)
        curve = trainer.train(0, 1)
        if poisoned:
            poison = math.nan if trainer.world.rank == 1 else 1.0
            hook = trainer.model.norm.register_forward_hook(lambda module, inputs, output: output * poison)
            result = trainer.step(7)
            hook.remove()
            assert (result.applied, result.grad_norm) == (False, math.inf)
        return curve + trainer.train(1, 3)

    assert in_ranks(2, run, True)[0] == in_ranks(2, run, False)[0]


@pytest.mark.parametrize("stage", [1, 3])
def test_evaluating_between_steps_changes_nothing(in_ranks: InRanks, stage: int) -> None:
    def run(evaluating: bool) -> list[tuple[float, float]]:
        trainer = Trainer(cluster(zero_stage=stage))
        curve = trainer.train(0, 1)
        if evaluating:
            assert not trainer.engine.losses(batch(5, samples=3)).requires_grad
        return curve + trainer.train(1, 3)

    assert in_ranks(2, run, True)[0] == in_ranks(2, run, False)[0]


def test_damaged_or_foreign_checkpoints_are_refused(in_ranks: InRanks, tmp_path: Path) -> None:
    def run() -> None:
        trainer = Trainer(cluster())
        folder = trainer.saved(tmp_path / "checkpoint")
        (folder / "optimizer.json").write_text("{}")
        with pytest.raises(DamageError, match="does not tell how many steps"):
            trainer.engine.load(folder)
        (folder / "weights.safetensors").unlink()
        with pytest.raises(DamageError, match="weights.safetensors is missing"):
            trainer.engine.load(folder, optimizer=False)
        (folder / "weights.safetensors").write_bytes((folder / "exp_avg.safetensors").read_bytes()[:-4])
        with pytest.raises(DamageError, match="does not hold the weights of this model"):
            trainer.engine.load(folder, optimizer=False)

    in_ranks(1, run)


@pytest.mark.gpu
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_on_a_gpu_bf16_trains_like_fp32_on_a_cpu(in_ranks: InRanks, stage: int) -> None:
    curve = in_ranks(1, train, cluster(zero_stage=stage, precision=Precision.auto), 4)[0]
    assert flat(curve) == pytest.approx(flat(train_bare(4)), rel=3e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_checkpoint_of_a_gpu_is_loaded_and_written_again_unchanged(
    in_ranks: InRanks, tmp_path: Path, stage: int
) -> None:
    layout = cluster(zero_stage=stage, precision=Precision.auto)

    def first() -> None:
        trainer = Trainer(layout)
        trainer.train(0, 2)
        trainer.saved(tmp_path / "first")

    def second() -> None:
        trainer = Trainer(layout, seed=9)
        trainer.engine.load(tmp_path / "first")
        trainer.saved(tmp_path / "second")

    in_ranks(1, first)
    in_ranks(1, second)
    assert files(tmp_path / "first") == files(tmp_path / "second")


_QUIET = """
import sys
from tests.engine.conftest import Trainer, cluster
from tinyllama.config.schema import Precision
from tinyllama.engine import startup

def main(layout):
    Trainer(layout).train(0, 1)
    startup.finalize()

for processes, settings in ((1, {"precision": Precision.bf16}), (2, {"zero_stage": 2}), (2, {"zero_stage": 3})):
    assert startup.run_ranks(main, (cluster(**settings),), processes) == 0
assert "mlflow" not in sys.modules
assert not any(name.startswith(("hydra", "omegaconf", "streaming")) for name in sys.modules)
"""


def test_runs_print_nothing_and_load_neither_hydra_nor_streaming_nor_mlflow() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", _QUIET], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
