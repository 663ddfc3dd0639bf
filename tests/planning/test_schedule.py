"""The learning rate of the original, from the first token to the last."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllama.config.schema import OptimizerConfig, ScheduleConfig
from tinyllama.errors import ConfigError
from tinyllama.planning.schedule import build_schedule

BATCH = 1_835_008
COSINE = ScheduleConfig(name="cosine", warmup_tokens=2000 * BATCH, horizon_tokens=2 * 10**12, min_learning_rate=4e-5)
ADAM = OptimizerConfig(learning_rate=4e-4, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1, max_grad_norm=1.0)


@pytest.mark.parametrize(
    "tokens, learning_rate",
    [
        (0, 0.0),
        (BATCH, 2e-7),
        (1000 * BATCH, 2e-4),
        (2000 * BATCH, 4e-4),
        (1_500_000_000_000, 9.29e-5),
        (1_850_000_000_000, 4.50e-5),
        (2_000_000_000_000, 4.00e-5),
        (3_000_000_000_000, 4.00e-5),
    ],
)
def test_the_cosine_of_two_trillion_tokens_passes_through_the_published_values(tokens, learning_rate):
    assert build_schedule(COSINE, ADAM)(tokens) == pytest.approx(learning_rate, rel=1e-3)


@given(st.integers(2000 * BATCH, 2 * 10**12), st.integers(2000 * BATCH, 2 * 10**12))
def test_the_cosine_never_rises_and_stays_between_peak_and_floor(one, other):
    schedule = build_schedule(COSINE, ADAM)
    early, late = sorted((one, other))
    assert 4e-4 >= schedule(early) >= schedule(late) >= 4e-5


def test_the_constant_schedule_warms_up_and_stays():
    schedule = build_schedule(replace(COSINE, name="constant"), ADAM)
    assert [schedule(1000 * BATCH), schedule(2000 * BATCH), schedule(10**13)] == pytest.approx([2e-4, 4e-4, 4e-4])


def test_without_warmup_the_first_step_has_the_peak():
    assert build_schedule(replace(COSINE, warmup_tokens=0), ADAM)(0) == pytest.approx(4e-4)


def test_an_unknown_schedule_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"schedule.name=cosin is not known; did you mean cosine\?"):
        build_schedule(replace(COSINE, name="cosin"), ADAM)
