"""Whole runs whose samples are spoiled on purpose: what the numerical watch makes of them."""

import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from tests.end_to_end.conftest import lines, only_run
from tests.end_to_end.faults import wrong_at
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.checkpoint.manifest import read_manifest
from tinyllama.config.checks import check_path
from tinyllama.data.inventory import take_inventory
from tinyllama.data.loader import MicroBatch, train_loader
from tinyllama.errors import TinyllamaError
from tinyllama.model.llama import Llama, build_model
from tinyllama.planning.plan import make_plan
from tinyllama.training import run as module
from tinyllama.training import serving
from tinyllama.training.display import build_display

pytestmark = pytest.mark.slow

STAGE = [
    "stage=basic", "stage.tokens=24K", "schedule.horizon_tokens=24K", "trace=true", "tracking=none",
    "cluster.processes=2", "cluster.micro_batch=2", "watch.window_steps=6", "watch.patience_steps=3",
]  # fmt: skip
"""Checkpoints fall after steps 6, 12, 18 and 23, the last."""
STEPS = 23
MARK = 511
"""In every place of a spoiled sample whose loss is multiplied by the largest factor; one less for the next one."""


class Bench:
    """Trains one small stage in ranks of this process' own, which inherit how it spoils samples."""

    def __init__(self, compose: Callable[..., tuple], small: list[str], monkeypatch: pytest.MonkeyPatch, runs: Path):
        self._compose, self._small, self._patch, self._runs = compose, small, monkeypatch, runs

    def train(self, *overrides: str, name: str = "runs") -> Path:
        """Returns the directory of the run."""
        from tinyllama.train import start

        path = self._compose(*self._small, *STAGE, *overrides, f"paths.runs={self._runs / name}")
        check_path(path)
        plan = make_plan(path, take_inventory(path))
        start(path[-1], plan, ("standard",), plain=True)
        return self.folder(name)

    def folder(self, name: str = "runs") -> Path:
        return only_run(self._runs / name)

    def spoil(self, factors: Mapping[int, float], reading: Callable[[int], None] = lambda step: None) -> None:
        """One sample of each of these steps is marked when it is read, after `reading`; its loss is multiplied."""
        marks = {factor: MARK - place for place, factor in enumerate(sorted(set(factors.values()), reverse=True))}

        def spoiling(order: Any, *args: Any, **kwargs: Any) -> Iterator[MicroBatch]:
            spoiled = {_sample_of(order, step): step for step in factors}
            for micro in train_loader(order, *args, **kwargs):
                found = [spoiled.get(pair) for pair in zip(micro.corpus.tolist(), micro.draw.tolist(), strict=True)]
                tokens = micro.tokens.clone()
                for row, step in enumerate(found):
                    if step is not None:
                        reading(step)
                        tokens[row] = marks[factors[step]]
                yield replace(micro, tokens=tokens)

        def multiply(module: Llama, inputs: tuple[torch.Tensor], losses: torch.Tensor) -> torch.Tensor:
            for factor, mark in marks.items():
                losses = losses * torch.where((inputs[0] == mark).all(dim=1), factor, 1.0)
            return losses

        def building(*args: Any) -> Llama:
            model = build_model(*args)
            model.register_forward_hook(multiply)
            return model

        self._patch.setattr(serving, "train_loader", spoiling)
        self._patch.setattr(module, "build_model", building)
        # The standard error at hand when it was imported belongs to an earlier test.
        self._patch.setattr(module, "build_display", partial(build_display, stream=sys.stderr))


def _sample_of(order: Any, step: int) -> tuple[int, int]:
    """Corpus and draw of the sixth sample of a step: read by the second of two ranks."""
    found = order.samples(torch.arange(32).numpy() + 32 * (step - 1))
    return int(found.corpus[6]), int(found.draw[6])


@pytest.fixture
def bench(compose, small, monkeypatch, tmp_path) -> Bench:
    return Bench(compose, small, monkeypatch, tmp_path)


def steps_of(path: Path) -> list[int]:
    return [line["step"] for line in lines(path)]


def skipped(folder: Path) -> list[int]:
    return [line["step"] for line in lines(folder / "metrics.jsonl") if "skipped" in line]


def verified(folder: Path) -> None:
    assert wrong_at(RunFolder(folder)) == []


def final_state(folder: Path) -> dict:
    newest = max(path for path in (folder / "checkpoints").iterdir() if path.name.isdigit())
    return {
        name: {key: value.tobytes() for key, value in load_file(newest / f"{name}.safetensors").items()}
        for name in ("weights", "exp_avg", "exp_avg_sq")
    } | {"optimizer": (newest / "optimizer.json").read_text(), "watch": read_manifest(newest).watch}


def kill_after_checkpoint(folder: Path, step: int) -> None:
    """End this rank as soon as a checkpoint, which is written behind training, is there."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (folder / "checkpoints" / f"{1024 * step:015d}").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)


def test_a_skipped_step_is_recorded_with_its_samples_and_a_run_killed_in_between_decides_and_ends_alike(bench):
    """One step's loss is not finite, another one's is a spike."""
    spoiled = {10: math.inf, 15: 1000.0}
    bench.spoil(spoiled)
    unbroken = bench.train(name="unbroken")
    assert skipped(unbroken) == steps_of(unbroken / "skipped.jsonl") == [10, 15]
    samples = {line["step"]: line["samples"] for line in lines(unbroken / "samples.jsonl")}
    for line in lines(unbroken / "skipped.jsonl"):
        assert line["samples"] == samples[line["step"]]
    not_finite, spike = (line["loss"] for line in lines(unbroken / "skipped.jsonl"))
    assert not_finite is None and spike > 20
    assert steps_of(unbroken / "metrics.jsonl") == list(range(1, STEPS + 1))
    assert json.loads(final_state(unbroken)["optimizer"]) == {"step": STEPS - 2}

    def kill(step: int) -> None:
        if step == 15:
            kill_after_checkpoint(bench.folder("killed"), 12)

    bench.spoil(spoiled, kill)
    with pytest.raises((SystemExit, TinyllamaError)):
        bench.train(name="killed")
    assert steps_of(bench.folder("killed") / "metrics.jsonl")[-1] == 14
    bench.spoil(spoiled)
    killed = bench.train(name="killed")
    for name in ("samples.jsonl", "skipped.jsonl"):
        assert (killed / name).read_bytes() == (unbroken / name).read_bytes()
    assert final_state(killed) == final_state(unbroken)
    for folder in (unbroken, killed):
        verified(folder)


def test_steps_skipped_in_a_row_go_back_once_and_then_end_the_run_with_an_explanation(bench):
    bench.spoil(dict.fromkeys([14, 15, 16, 17], math.inf))
    with pytest.raises(TinyllamaError) as ended:
        bench.train()
    message = str(ended.value)
    assert ended.value.exit_code == 1
    assert "3 steps in a row were skipped, 14 to 16" in message
    assert "its loss is not finite" in message and "slimpajama" in message
    assert "going back to step 12 has not helped" in message
    assert "watch.skip_window=true" in message and "watch.mode=warn" in message
    assert steps_of(bench.folder() / "metrics.jsonl") == list(range(1, 17))
    assert steps_of(bench.folder() / "skipped.jsonl") == [14, 15, 16]
    verified(bench.folder())


def test_the_samples_between_the_checkpoint_and_the_last_skipped_step_can_be_passed_over(
    bench, store_template, tmp_path
):
    (tmp_path / "runs").mkdir()
    shutil.copy(store_template, tmp_path / "runs" / "mlflow.db")
    bench.spoil(dict.fromkeys([14, 15, 16], math.inf))
    folder = bench.train("watch.skip_window=true", "tracking=mlflow")
    assert skipped(folder) == steps_of(folder / "skipped.jsonl") == [13, 14, 15, 16]
    assert {line["why"] for line in lines(folder / "skipped.jsonl")} == {"passed over after going back"}
    assert steps_of(folder / "metrics.jsonl") == steps_of(folder / "samples.jsonl") == list(range(1, STEPS + 1))
    assert json.loads(final_state(folder)["optimizer"]) == {"step": STEPS - 4}
    bench.spoil({})
    undisturbed = bench.train(name="undisturbed")
    samples = (folder / "samples.jsonl").read_bytes()
    assert samples == (undisturbed / "samples.jsonl").read_bytes()
    losses = [[line["loss"] for line in lines(each / "metrics.jsonl")] for each in (folder, undisturbed)]
    assert losses[0][:12] == losses[1][:12]
    assert losses[0][12:16] == [None] * 4
    assert losses[0][16:] != losses[1][16:]
    verified(folder)


def test_without_a_checkpoint_or_without_the_wish_to_go_back_the_run_ends_at_once(bench):
    bench.spoil(dict.fromkeys([3, 4, 5], math.nan))
    with pytest.raises(TinyllamaError, match="no checkpoint from before them"):
        bench.train(name="early")
    bench.spoil(dict.fromkeys([8, 9, 10], math.nan))
    with pytest.raises(TinyllamaError, match="watch.rollback=false"):
        bench.train("watch.rollback=false", name="unwanted")
    assert steps_of(bench.folder("unwanted") / "metrics.jsonl") == list(range(1, 11))


@pytest.mark.parametrize("at, checkpoint", [pytest.param(11, 6, marks=pytest.mark.soak), (14, 12)])
def test_a_run_killed_while_it_passes_over_samples_goes_on_passing_from_a_checkpoint_that_its_journals_reach(
    bench, at, checkpoint
):
    """The checkpoint of step 12 is made twice: among the skipped steps, given up, and among those passed over."""
    spoiled, settings = dict.fromkeys(range(11, 15), math.inf), ["watch.skip_window=true", "watch.patience_steps=4"]
    bench.spoil(spoiled)
    unbroken = bench.train(*settings, name="unbroken")
    assert skipped(unbroken) == list(range(7, 15))

    def kill(step: int) -> None:
        if step == at and 7 in skipped(bench.folder("killed")):
            kill_after_checkpoint(bench.folder("killed"), checkpoint)

    bench.spoil(spoiled, kill)
    with pytest.raises((SystemExit, TinyllamaError)):
        bench.train(*settings, name="killed")
    assert skipped(bench.folder("killed")) == list(range(7, at))
    bench.spoil(spoiled)
    killed = bench.train(*settings, name="killed")
    for name in ("samples.jsonl", "skipped.jsonl"):
        assert (killed / name).read_bytes() == (unbroken / name).read_bytes()
    assert steps_of(killed / "metrics.jsonl") == list(range(1, STEPS + 1))
    assert final_state(killed) == final_state(unbroken)
    for folder in (unbroken, killed):
        verified(folder)
