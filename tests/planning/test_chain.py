"""The order chain depends on what was read in which order, and on nothing else."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllama.planning.chain import ROOT, extend, planned_chain, rows_of
from tinyllama.planning.mixture import Mixture
from tinyllama.planning.order import SampleOrder

BATCH, STEPS = 8, 30
ORDER = SampleOrder(Mixture(["a", "b"], [(0, {"a": 1, "b": 1})]), {"a": [20] * 5, "b": [7] * 9}, seed=1)
WHOLE = ORDER.samples(np.arange(STEPS * BATCH))


def chain_of(samples, names=ORDER.names):
    return extend(ROOT, rows_of(samples, names), BATCH)


@given(st.lists(st.integers(1, STEPS), max_size=6))
def test_it_is_the_same_in_whatever_pieces_it_is_made(stops):
    rows, chain, start = rows_of(WHOLE, ORDER.names), ROOT, 0
    for stop in sorted({*stops, STEPS}):
        chain, start = extend(chain, rows[start * BATCH : stop * BATCH], BATCH), stop
    assert chain == chain_of(WHOLE)
    planned = dict(planned_chain(ORDER, BATCH, 0, [stop * BATCH for stop in sorted({*stops, STEPS})], ROOT))
    assert planned[STEPS * BATCH] == chain
    assert {stop * BATCH for stop in stops} <= planned.keys()


def test_it_goes_on_from_any_position():
    half = dict(planned_chain(ORDER, BATCH, 0, [80], ROOT))[80]
    assert list(planned_chain(ORDER, BATCH, 80, [STEPS * BATCH], half)) == [(STEPS * BATCH, chain_of(WHOLE))]


@pytest.mark.parametrize("field", ["corpus", "draw", "sample_id"])
def test_it_changes_with_anything_of_any_sample(field):
    for place in (0, 100, STEPS * BATCH - 1):
        changed = getattr(WHOLE, field).copy()
        changed[place] ^= 1
        assert chain_of(replace(WHOLE, **{field: changed})) != chain_of(WHOLE)


def test_it_changes_when_two_samples_of_a_step_or_two_steps_change_places():
    for first, second in [(0, 1), (0, BATCH)]:
        places = np.arange(STEPS * BATCH)
        places[[first, second]] = places[[second, first]]
        assert chain_of(ORDER.samples(places)) != chain_of(WHOLE)


def test_a_corpus_counts_by_its_name_and_not_by_its_place_among_the_others():
    swapped = replace(WHOLE, corpus=1 - WHOLE.corpus)
    assert chain_of(swapped, ("b", "a")) == chain_of(WHOLE)
    assert chain_of(WHOLE, ("a", "c")) != chain_of(WHOLE)


def test_it_is_that_of_every_earlier_version():
    """If this fails, checkpoints that exist could no longer be proven."""
    assert chain_of(WHOLE) == "577f70259e02e4af30fe7d74deaddcc61607b1cf680ca9bb073ffa647387a013"
