"""Which steps the numerical watch lets through: its statistics alone, and in real ranks with a real engine."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from tests.engine.conftest import BATCH, SEQ, VOCAB, Trainer, cluster, in_ranks  # noqa: F401
from tinyllama.config.schema import WatchConfig, WatchMode
from tinyllama.data.loader import MicroBatch
from tinyllama.planning.mixture import Mixture
from tinyllama.planning.order import SampleOrder
from tinyllama.planning.progress import Progress
from tinyllama.training.hooks import Hook
from tinyllama.training.loop import train
from tinyllama.training.metrics import Meter, StepReport
from tinyllama.training.stopping import StopRequest
from tinyllama.training.watch import Usual, Watch, WatchState

WINDOW, DEVIATIONS = 32, 8.0
ORDER = SampleOrder(Mixture(["a", "b"], [(0, {"a": 3, "b": 1})]), {"a": [400], "b": [400]}, seed=1)

# ---------------------------------------------------------------- what is usual


def curve(steps: int, noise: float, seed: int, start: float = 10.0, end: float = 2.0) -> list[float]:
    """A loss that falls by a power law, with noise in its logarithm."""
    normal = torch.randn(steps, generator=torch.Generator().manual_seed(seed)).tolist()
    return [(end + (start - end) / (1 + step) ** 0.5) * math.exp(noise * each) for step, each in enumerate(normal)]


def most_above(values: list[float], window: int = WINDOW) -> float:
    """How far the most unusual value lies above what was usual before it, past the first window."""
    usual, found = Usual(), 0.0
    for value in values:
        if usual.steps >= window:
            found = max(found, usual.deviations(value))
        usual.add(value, window)
    return found


@given(noise=some.floats(0.001, 0.3), seed=some.integers(0, 100), end=some.floats(0.5, 9.0))
def test_a_loss_that_falls_as_losses_do_is_never_unusual(noise, seed, end):
    assert most_above(curve(500, noise, seed, end=end)) < DEVIATIONS


@given(noise=some.floats(0.001, 0.05), seed=some.integers(0, 100), at=some.integers(8 * WINDOW, 499))
def test_a_value_that_doubles_is_unusual_however_far_the_loss_has_fallen(noise, seed, at):
    values = curve(500, noise, seed)
    values[at] *= 2
    assert most_above(values[: at + 1]) > DEVIATIONS
    assert most_above(values[:at]) < DEVIATIONS


def test_mean_and_deviation_of_the_first_window_are_the_plain_ones():
    values = curve(WINDOW, 0.1, seed=3)
    usual = Usual()
    for value in values:
        usual.add(value, WINDOW)
    logarithms = torch.tensor(values, dtype=torch.float64).log()
    assert usual.mean == pytest.approx(logarithms.mean().item())
    assert usual.variance == pytest.approx(logarithms.var(unbiased=False).item())


def test_one_outlier_that_was_applied_does_not_hide_the_next():
    usual = Usual()
    for value in curve(200, 0.02, seed=1):
        usual.add(value, WINDOW)
    level = usual.value
    usual.add(1000 * level, WINDOW)
    assert usual.deviations(2 * level) > DEVIATIONS


def test_a_new_level_becomes_usual_after_a_while():
    usual = Usual()
    for value in [*curve(200, 0.02, seed=1), *(2 * each for each in curve(WINDOW, 0.02, seed=2, start=3.0))]:
        usual.add(value, WINDOW)
    assert usual.deviations(2 * usual.value) < DEVIATIONS


def test_the_state_comes_back_from_json_exactly():
    state = WatchState(applied=7, passing_until=9, went_back_to=3)
    for value in curve(50, 0.1, seed=5):
        state.loss.add(value, WINDOW)
        state.grad_norm.add(1 / value, WINDOW)
    assert WatchState.read(json.loads(json.dumps(state.document())), step=50) == state


# ---------------------------------------------------------------- in ranks

SPIKE, QUIET = 60, 63
"""The step whose samples are not like the others, and the number of steps."""


class Reports(Hook):
    def __init__(self) -> None:
        self.all: list[StepReport] = []

    def after_step(self, report: StepReport, batch: Any) -> None:
        self.all.append(report)


def micro_batches(trainer: Trainer, step: int, rows: torch.Tensor) -> list[MicroBatch]:
    """This rank's share of a global batch, as the loader gives it."""
    found = ORDER.samples(torch.arange(step * BATCH, (step + 1) * BATCH).numpy())
    columns = [torch.from_numpy(each) for each in (found.corpus, found.draw, found.sample_id)]
    parts = zip(*(each.split(trainer.micro_batch) for each in (rows, *columns)), strict=True)
    return [MicroBatch(*part) for part in parts][trainer.world.rank :: trainer.world.size]


def spoiled(step: int) -> torch.Tensor:
    """The global batch of a step, which counts up; at SPIKE what the second of two ranks reads is noise."""
    generator = torch.Generator().manual_seed(step)
    rows = (torch.randint(3, (BATCH, 1), generator=generator) + torch.arange(SEQ + 1)) % VOCAB
    if step == SPIKE:
        noise = torch.randint(VOCAB, (BATCH, SEQ + 1), generator=generator)
        rows = torch.where((torch.arange(BATCH) % 4 >= 2)[:, None], noise, rows)
    return rows


def run(
    folder: Path, mode: WatchMode, poison: Callable[[Trainer, int], float] = lambda trainer, step: 1.0
) -> list[tuple]:
    """Train for some steps; returns of each: loss, norm, whether it was applied and what was said against it."""
    trainer = Trainer(cluster(micro_batch=2))
    config = WatchConfig(mode=mode, window_steps=8, deviations=6.0)
    watch = Watch(config, WatchState(), folder / "skipped.jsonl", 0, ORDER, trainer.world)
    reports = Reports()
    meter = Meter(ORDER.names, SEQ, 1.0, None, torch.device("cpu"))
    plan: Any = SimpleNamespace(batch_samples=BATCH, seq_len=SEQ, schedule=lambda tokens: 1e-2)
    factor = 1.0
    trainer.model.register_forward_hook(lambda module, inputs, losses: losses * factor)

    def batches():
        nonlocal factor
        for step in range(QUIET):
            factor = poison(trainer, step)
            yield micro_batches(trainer, step, spoiled(step))

    train(trainer.engine, batches(), plan, Progress(0, 0, 0), meter, watch, [reports, watch], StopRequest())
    watch.close()
    return [(each.loss, each.grad_norm, each.applied, each.objection) for each in reports.all]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_samples_unlike_the_others_on_one_rank_are_skipped_or_told_or_neither_on_all_ranks_alike(
    in_ranks,  # noqa: F811
    tmp_path,
):
    found = {}
    for mode in WatchMode:
        folder = tmp_path / mode.value
        folder.mkdir()
        first, second = in_ranks(2, run, folder, mode)
        assert first == second
        found[mode] = first
        assert [step for step, each in enumerate(first) if each[3]] == ([] if mode is WatchMode.off else [SPIKE])
        assert [step for step, each in enumerate(first) if not each[2]] == ([SPIKE] if mode is WatchMode.skip else [])
    skip, warn, off = found[WatchMode.skip], found[WatchMode.warn], found[WatchMode.off]
    assert "deviations above its usual" in skip[SPIKE][3]
    assert skip[: SPIKE + 1] == [
        (*each[:2], step != SPIKE, skip[step][3]) for step, each in enumerate(off[: SPIKE + 1])
    ]
    assert [each[:3] for each in warn] == [each[:3] for each in off]
    assert skip[SPIKE + 1][0] != off[SPIKE + 1][0]
    (line,) = lines(tmp_path / "skip" / "skipped.jsonl")
    expected = ORDER.samples(torch.arange(SPIKE * BATCH, (SPIKE + 1) * BATCH).numpy())
    names = [ORDER.names[index] for index in expected.corpus]
    assert line["samples"] == [
        list(row) for row in zip(names, expected.draw.tolist(), expected.sample_id.tolist(), strict=True)
    ]
    assert (line["step"], line["tokens"], line["why"]) == (SPIKE + 1, (SPIKE + 1) * BATCH * SEQ, skip[SPIKE][3])
    assert (line["loss"], line["grad_norm"]) == skip[SPIKE][:2]
    assert lines(tmp_path / "warn" / "skipped.jsonl") == []


@pytest.mark.slow
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_on_all_even_when_the_watch_is_off(
    in_ranks,  # noqa: F811
    tmp_path,
    value,
):
    def poison(trainer: Trainer, step: int) -> float:
        return value if trainer.world.rank == 1 and step == 5 else 1.0

    first, second = in_ranks(2, run, tmp_path, WatchMode.off, poison)
    assert [each[2:] for each in first] == [each[2:] for each in second]
    assert [each[2:] for each in first] == [
        (step != 5, "its loss is not finite" if step == 5 else None) for step in range(QUIET)
    ]
    assert all(math.isfinite(each[0]) for step, each in enumerate(first) if step != 5)
    (line,) = lines(tmp_path / "skipped.jsonl")
    assert (line["step"], line["loss"], line["grad_norm"]) == (6, None, None)
