"""Kills come where the seed says, of every kind; other ranks are those that share the batch."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllama.data.inventory import take_inventory
from tinyllama.drilling.points import (
    DURING,
    SIGNALS,
    STEPS_TO_SPARE,
    Placement,
    deal_kills,
    other_placements,
    own_placement,
)
from tinyllama.errors import ConfigError
from tinyllama.planning.plan import make_plan

SEEDS = st.integers(0, 2**32)
DEMO = ["+scale=demo", "stage=basic"]  # 32 samples a batch, 8 a pass


@given(count=st.integers(1, 40), steps=st.integers(2, 40), seed=SEEDS)
def test_kills_come_in_the_order_of_their_steps_with_steps_to_spare_after_the_last_kill(count, steps, seed):
    _, kills = deal_kills([3, count], steps, random.Random(seed))
    places, last = [kill.step for kill in kills], max(1, steps - STEPS_TO_SPARE - 1)
    assert len(kills) == count
    assert places == sorted(places)
    assert all(1 <= step <= last for step in places)
    assert count > last or len(set(places)) == count


@given(seed=SEEDS)
def test_of_three_kills_none_has_the_signal_or_the_phase_of_another_and_nine_are_all_there_are(seed):
    kinds = [(kill.during, kill.signal) for kills in deal_kills([4, 5], 30, random.Random(seed)) for kill in kills]
    assert set(kinds) == {(during, number) for during in DURING for number in SIGNALS}
    for first in (0, 3, 6):
        phases, signals = zip(*kinds[first : first + 3], strict=True)
        assert (set(phases), set(signals)) == (set(DURING), set(SIGNALS))


def test_the_seed_decides():
    assert deal_kills([6], 16, random.Random(1)) == deal_kills([6], 16, random.Random(1))
    assert deal_kills([6], 16, random.Random(1)) != deal_kills([6], 16, random.Random(2))


def placements(compose, *overrides: str) -> list[Placement]:
    path = compose(*DEMO, *overrides)
    plan = make_plan(path, take_inventory(path))
    return other_placements(path[-1], plan, random.Random(0))


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_each_world_comes_once_the_own_one_last_and_with_another_micro_batch(compose):
    own = own_placement(compose(*DEMO)[-1])
    found = placements(compose)
    assert own == Placement(1, 8)
    assert [each.world for each in found] == [2, 4, 1]
    assert own not in found
    assert all(32 % (each.world * each.micro_batch) == 0 and each.micro_batch <= 8 for each in found)


def test_worlds_that_cannot_share_the_batch_are_left_out(compose):
    found = placements(compose, "stage.batch_tokens=768", "cluster.micro_batch=3")  # 6 samples
    assert {each.world for each in found} == {1, 2}


def test_never_more_ranks_than_gpus(compose, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert {each.world for each in placements(compose)} == {1, 2}
    with pytest.raises(ConfigError, match="4 ranks need as many GPUs, and 2 are visible"):
        placements(compose, "drill.worlds=[4]")


def test_worlds_that_do_not_fit_into_a_gpu_are_left_out(compose, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    one_b = ["stage=basic", "stage.batch_tokens=65536", "cluster.micro_batch=2", "cluster.gpu_memory_gib=15"]
    path = compose(*one_b)
    found = other_placements(path[-1], make_plan(path, take_inventory(path)), random.Random(0))
    assert {each.world for each in found} == {4}  # an optimizer of 1.1B parameters is too much for fewer


def test_the_persons_worlds_are_taken_in_turn(compose):
    assert [each.world for each in placements(compose, "drill.worlds=[4,1]")] == [4, 1]
    with pytest.raises(ConfigError, match="3 ranks cannot share a batch of 32 samples evenly"):
        placements(compose, "drill.worlds=[3]")
