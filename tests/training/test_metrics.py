"""What a step tells of the time that it took."""

import io
import time
from types import SimpleNamespace
from typing import Any

import torch

from tests.data.conftest import on_ranks  # noqa: F401
from tinyllama.data.loader import MicroBatch
from tinyllama.engine.zero import StepResult
from tinyllama.planning.progress import Progress
from tinyllama.training.display import Lines
from tinyllama.training.journal import metrics_of
from tinyllama.training.metrics import Meter, StepReport
from tinyllama.training.stopping import StopRequest

NOTHING, ONE = Progress(0, 0, 0), Progress(1, 4, 32)
SECONDS = 0.05


def batches(wait: float):
    for _ in range(2):
        time.sleep(wait)
        ids = torch.zeros(2, dtype=torch.int64)
        yield [MicroBatch(tokens=torch.zeros(2, 9, dtype=torch.int64), corpus=ids, draw=ids, sample_id=ids)]


def reports(world) -> list[StepReport]:
    meter = Meter(["slim"], 8, 1.0, None, torch.device("cpu"))
    found = []
    for batch in meter.timed(batches(wait=SECONDS * world.rank)):
        loss = meter.gather(batch, StopRequest(), torch.full((2,), 1.0 + world.rank))
        assert loss == 1.5
        found.append(meter.report(NOTHING, ONE, 0.1, StepResult(torch.ones(2), 1.0, applied=True), None))
    return found


def test_a_step_tells_on_all_ranks_how_long_the_one_waited_that_waited_longest(on_ranks):  # noqa: F811
    first, second = on_ranks(2, reports)
    assert len(first) == 2
    assert [step.data_wait for step in first] == [step.data_wait for step in second]
    assert all(step.data_wait >= SECONDS for step in first)
    assert all(step.data_wait <= step.seconds for step in second)
    assert [metrics_of(step)["data_wait"] for step in first] == [round(step.data_wait, 4) for step in first]


def said(**seconds: float) -> str:
    plan: Any = SimpleNamespace(steps=1)
    report: Any = SimpleNamespace(
        progress=ONE, validation={}, loss=1.0, learning_rate=0.1, tokens_per_second=9.0, mfu=None, **seconds
    )
    out = io.StringIO()
    Lines(plan, "basic", out).after_step(report, [])
    return out.getvalue()


def test_people_are_told_of_waiting_once_it_costs_more_than_a_hundredth_of_the_step():
    assert "waiting for data" not in said(seconds=2.0, data_wait=0.019)
    assert "25% of the step waiting for data" in said(seconds=2.0, data_wait=0.5)
