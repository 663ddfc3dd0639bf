"""Steps that a judge refuses, in real ranks: nothing of them may remain, on any stage, precision and world."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.conftest import Trainer, batch, cluster
from tests.matrix import pairs_of
from tinyllama.config.schema import Precision
from tinyllama.engine.zero import StepResult

pytestmark = pytest.mark.slow

InRanks = Callable[..., list[Any]]

every_layout = pairs_of(processes=[1, 2], stage=[1, 2, 3], precision=[Precision.fp32, Precision.bf16])


def judged(trainer: Trainer, step: int, answer: bool) -> tuple[StepResult, list[tuple[torch.Tensor, float]]]:
    """A step, and what its judge was asked."""
    asked: list[tuple[torch.Tensor, float]] = []

    def judge(losses: torch.Tensor, grad_norm: float) -> bool:
        asked.append((losses, grad_norm))
        return answer

    rows = batch(step, trainer.samples).split(trainer.micro_batch)
    return trainer.engine.step(rows[trainer.world.rank :: trainer.world.size], 1e-2, judge), asked


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@every_layout
def test_a_refused_step_leaves_weights_moments_and_step_count_as_if_it_had_not_been_seen(
    in_ranks: InRanks, tmp_path: Path, processes: int, stage: int, precision: Precision
) -> None:
    def run(refuse: bool, folder: Path) -> list[tuple[float, float]]:
        trainer = Trainer(cluster(zero_stage=stage, precision=precision))
        curve = []
        for step in range(3):
            if refuse and step != 1:  # the first of all, a single one and one after another
                for other in (71, 72):
                    result, _ = judged(trainer, other, answer=False)
                    assert not result.applied
                    assert math.isfinite(result.grad_norm) and result.losses.isfinite().all()
            curve += trainer.train(step, step + 1)
        trainer.saved(folder)
        return curve

    with_refused = in_ranks(processes, run, True, tmp_path / "refused")
    assert with_refused == in_ranks(processes, run, False, tmp_path / "never-seen")
    assert files(tmp_path / "refused") == files(tmp_path / "never-seen")


@every_layout
def test_the_judge_is_asked_once_on_every_rank_with_the_same_norm_before_the_weights_change(
    in_ranks: InRanks, processes: int, stage: int, precision: Precision
) -> None:
    def run() -> tuple[float, float, bool]:
        trainer = Trainer(cluster(zero_stage=stage, precision=precision))
        result, asked = judged(trainer, 0, answer=True)
        ((losses, grad_norm),) = asked
        assert torch.equal(losses, result.losses)
        return grad_norm, result.grad_norm, result.applied

    answers = in_ranks(processes, run)
    plain = in_ranks(processes, lambda: Trainer(cluster(zero_stage=stage, precision=precision)).step(0).grad_norm)
    assert answers == [(plain[0], plain[0], True)] * processes


@every_layout
def test_a_gradient_that_is_not_finite_on_the_last_rank_is_refused_on_all_whatever_the_judge_says(
    in_ranks: InRanks, tmp_path: Path, processes: int, stage: int, precision: Precision
) -> None:
    def run(poisoned: bool, folder: Path) -> None:
        trainer = Trainer(cluster(zero_stage=stage, precision=precision))
        trainer.train(0, 1)
        if poisoned:
            poison = math.inf if trainer.world.rank == processes - 1 else 1.0
            hook = trainer.model.norm.register_forward_hook(lambda module, inputs, output: output * poison)
            result, asked = judged(trainer, 7, answer=True)
            hook.remove()
            assert not result.applied
            assert [grad_norm for _, grad_norm in asked] == [math.inf]
        trainer.train(1, 3)
        trainer.saved(folder)

    in_ranks(processes, run, True, tmp_path / "poisoned")
    in_ranks(processes, run, False, tmp_path / "sound")
    assert files(tmp_path / "poisoned") == files(tmp_path / "sound")
