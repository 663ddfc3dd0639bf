"""Many steps as few points."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllama.reporting.pages import series
from tinyllama.reporting.pages.runs import read_runs
from tinyllama.reporting.pages.series import BUCKETS, Buckets, greatest_deviation, sparse


@settings(max_examples=50)
@given(st.integers(1, 5 * BUCKETS), st.integers(0), st.floats(-100, 100))
def test_no_step_is_lost_and_whatever_sticks_out_survives(count, place, spike):
    values = np.sin(np.arange(count) / 7)
    values[place % count] = spike
    tokens = 4096 * np.arange(1, count + 1)
    buckets = Buckets(tokens)
    drawn = buckets.series(values)
    lowest, highest = drawn.get("low", drawn["mean"]), drawn.get("high", drawn["mean"])
    assert len(drawn["mean"]) == len(buckets.tokens) == min(count, BUCKETS)
    assert (min(lowest), max(highest)) == pytest.approx((values.min(), values.max()), rel=1e-4, abs=1e-4)
    assert buckets.tokens[-1] == tokens[-1]
    assert buckets.sums(np.ones(count)).sum() == count
    assert buckets.sums(np.ones(count)).max() == buckets.steps


def test_a_point_is_the_mean_of_its_steps_and_of_those_alone_that_were_measured():
    values = np.arange(2.0 * BUCKETS)
    values[1] = np.nan
    values[4:6] = np.nan
    mean = Buckets(np.arange(2 * BUCKETS)).series(values)["mean"]
    assert mean[:5] == [0.0, 2.5, None, 6.5, 8.5]


def test_what_is_measured_now_and_then_keeps_its_own_points(writer):
    writer.plan(("+variant=standard", "stage=basic"))
    writer.write("basic standard", steps=5)
    (run,) = read_runs(writer.runs, "demo").runs
    points = sparse(run, "validation/skypile")
    known = np.flatnonzero(np.isfinite(run.steps.value("validation/skypile")))
    assert points["tokens"] == [4096 * 2, 4096 * 4] == run.steps.tokens[known].tolist()
    assert points["mean"] == pytest.approx(run.steps.value("validation/skypile")[known], rel=1e-4)


def test_the_deviation_from_the_declared_mixture_is_found_and_a_lost_step_makes_it_unknown(writer):
    writer.plan(("+variant=math_code", "stage=continual"))
    for name in writer.nodes:
        writer.write(name)
    run = read_runs(writer.runs, "demo").runs[1]
    found = greatest_deviation(run)
    assert found is not None
    assert 0 < found <= series.declared_mixture(run).deviation_bound < 1
    run.steps.values["corpus_samples/starcoder"][3:6] += np.array([3, 0, -3])
    run.steps.values["corpus_samples/slimpajama"][3:6] -= np.array([3, 0, -3])
    assert greatest_deviation(run) > 2
    run.steps.values["corpus_samples/starcoder"][9] -= 1
    assert greatest_deviation(run) is None
