"""Prepared samples at other lengths: what is read, in which order, and how a ledger goes from one to the other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllama.errors import ConfigError
from tinyllama.planning.mixture import Mixture
from tinyllama.planning.order import CorpusOrder, SampleOrder
from tinyllama.planning.views import AS_PREPARED, View, carry

PACKED = 24
"""Tokens of a prepared sample."""
LENGTHS = [PACKED // 12, PACKED // 4, PACKED // 3, PACKED // 2, PACKED, 2 * PACKED, 3 * PACKED, 4 * PACKED]
SHARDS = [16] * 7 + [5] + [16] * 3 + [1]
ONE = Mixture(["tales"], [(0, {"tales": 1})])

shards_of_any_size = st.lists(st.integers(0, 20), min_size=1, max_size=12).filter(lambda sizes: max(sizes) >= 4)


def prepared_tokens(shards):
    """Every prepared sample, [samples, PACKED + 1]; a token is its own place in the text, and no two shards touch."""
    rows = []
    for shard, size in enumerate(shards):
        begin = 10**6 * shard
        rows += [np.arange(begin + index * PACKED, begin + (index + 1) * PACKED + 1) for index in range(size)]
    return rows


def read(view, shards, sample_ids):
    """The tokens of samples of a view, [n, seq_len + 1]."""
    rows = prepared_tokens(shards)
    ids = np.asarray(sample_ids)
    firsts = view.first(ids, shards).tolist()
    return np.stack(
        [view.tokens(each, first, rows.__getitem__) for each, first in zip(ids.tolist(), firsts, strict=True)]
    )


def order_at(seq_len, lanes=1, shards=SHARDS, **more):
    view = View.of(PACKED, seq_len)
    return SampleOrder(ONE, {"tales": shards}, seed=5, lanes=lanes, window=3, view=view, **more)


def text_of(order, positions):
    """The tokens that each lane predicts at these positions, in its order: [lanes, tokens]."""
    found = order.samples(positions)
    tokens = read(order.view, order.shard_samples["tales"], found.sample_id)[:, 1:]
    return np.stack([tokens[found.draw % order.lanes == lane].ravel() for lane in range(order.lanes)])


@given(shards_of_any_size, st.sampled_from(LENGTHS))
def test_a_view_predicts_every_token_once_except_those_that_it_counts_as_left_out(shards, seq_len):
    view = View.of(PACKED, seq_len)
    count = view.samples(shards)
    predicted = read(view, shards, np.arange(count))[:, 1:] if count else np.empty((0, seq_len))
    whole = np.concatenate([row[1:] for row in prepared_tokens(shards)])
    assert predicted.shape[1] == seq_len
    assert np.isin(predicted, whole).all() and np.unique(predicted).size == predicted.size
    assert whole.size - predicted.size == view.left_out(shards) * PACKED


@given(shards_of_any_size, st.sampled_from(LENGTHS))
def test_a_sample_of_a_view_is_text_that_goes_on_without_a_gap(shards, seq_len):
    view = View.of(PACKED, seq_len)
    count = view.samples(shards)
    rows = read(view, shards, np.arange(count)) if count else np.empty((0, seq_len + 1))
    assert (np.diff(rows, axis=1) == 1).all()


@pytest.mark.parametrize("seq_len", LENGTHS)
@pytest.mark.parametrize("other_len", LENGTHS)
def test_samples_of_two_views_overlap_where_they_share_tokens(seq_len, other_len):
    shards = [5, 3, 0, 9, 1]
    view, other = View.of(PACKED, seq_len), View.of(PACKED, other_len)
    mine, theirs = (read(each, shards, np.arange(each.samples(shards)))[:, 1:] for each in (view, other))
    for sample_id, tokens in enumerate(mine):
        sharing = np.flatnonzero(np.isin(theirs, tokens).any(axis=1))
        assert view.overlapping(sample_id, other, shards) == sharing.tolist()


@pytest.mark.parametrize("joined", [2, 4, 16])
def test_of_shards_of_a_power_of_two_joining_leaves_out_less_than_a_sample_of_the_last_shard_alone(joined):
    assert View(joined=joined).left_out([16] * 9 + [11]) == 11 % joined


@given(shards_of_any_size, st.sampled_from(LENGTHS), st.integers(1, 4), st.integers(0, 10**4), st.data())
@settings(max_examples=60)
def test_the_way_from_a_draw_to_its_sample_leads_back(shards, seq_len, lanes, epoch, data):
    view = View.of(PACKED, seq_len)
    if view.units(shards).sum() < lanes:
        return
    corpus = CorpusOrder(view.units(shards), 7, lanes, 3, view.pieces)
    draws = np.arange(corpus.epoch_samples) + epoch * corpus.epoch_samples
    ids = corpus.sample_ids(draws)
    assert np.unique(ids).size == ids.size
    assert 0 <= ids.min() <= ids.max() < corpus.samples == view.samples(shards)
    assert corpus.epoch_samples == view.epoch_turns(shards, lanes) * lanes
    assert np.array_equal(corpus.draws(ids, epoch), draws)
    left_over = np.setdiff1d(np.arange(corpus.samples), ids)
    assert left_over.size < lanes * view.pieces
    assert (corpus.draws(left_over, epoch) == -1).all()
    some = np.array(data.draw(st.lists(st.sampled_from(draws.tolist()), max_size=5)), np.int64)
    assert np.array_equal(corpus.sample_ids(some), ids[some - draws[0]])


@pytest.mark.parametrize("seq_len", [length for length in LENGTHS if length < PACKED])
@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_pieces_bring_each_lane_the_text_of_the_prepared_order(seq_len, lanes):
    whole, pieces = order_at(PACKED, lanes), order_at(seq_len, lanes)
    count = 2 * whole.epoch_samples("tales") + 5 * lanes
    expected = text_of(whole, np.arange(count))
    found = text_of(pieces, np.arange(count * (PACKED // seq_len)))
    assert np.array_equal(found, expected)


@given(st.sampled_from(LENGTHS), st.sampled_from([1, 2]), st.integers(0, 150), st.data())
@settings(max_examples=40)
def test_a_samples_occurrences_are_those_that_reading_every_position_finds(seq_len, lanes, drawn, data):
    order = order_at(seq_len, lanes, start_draws={"tales": drawn * lanes})
    stop = 3 * order.epoch_samples("tales") // lanes * lanes
    sample_id = data.draw(st.integers(0, order.view.samples(SHARDS) - 1))
    found = order.samples(np.arange(stop))
    here = found.sample_id == sample_id
    expected = list(zip(found.draw[here].tolist(), np.flatnonzero(here).tolist(), strict=True))
    assert order.occurrences("tales", sample_id, stop) == expected


def life(lengths, rounds, lanes):
    """What the stages of a path predict, each [lanes, tokens], and the ledger after each.

    Args:
        lengths: of each stage's samples.
        rounds: how many samples each lane reads in each stage.
    """
    ledger, view, texts = {}, AS_PREPARED, []
    for seq_len, count in zip(lengths, rounds, strict=True):
        ledger, view = carry(ledger, {"tales": SHARDS}, lanes, view, View.of(PACKED, seq_len)), View.of(PACKED, seq_len)
        order = order_at(seq_len, lanes, start_draws=ledger)
        texts.append(text_of(order, np.arange(count * lanes)))
        ledger = order.draws_before(count * lanes)
    return texts


def passes_over(whole, texts):
    """Assert that the texts, joined, are the whole but for gaps between them: the length of each gap."""
    begin, gaps = 0, []
    for text in texts:
        gap = 0
        while text.size and whole[begin + gap] != text[0]:
            gap += 1
        assert np.array_equal(whole[begin + gap : begin + gap + text.size], text)
        gaps.append(gap)
        begin += gap + text.size
    return gaps


@given(
    st.lists(st.tuples(st.sampled_from(LENGTHS[:5]), st.integers(1, 60)), min_size=2, max_size=5),
    st.sampled_from([1, 2, 3]),
)
@settings(max_examples=40)
def test_from_stage_to_stage_a_lane_repeats_nothing_and_passes_over_less_than_a_sample(stages, lanes):
    lengths, rounds = zip(*stages, strict=True)
    texts = life(lengths, rounds, lanes)
    tokens = sum(text.shape[1] for text in texts) + 5 * PACKED * len(texts)
    whole = text_of(order_at(PACKED, lanes), np.arange(-(-tokens // PACKED) * lanes))
    for lane in range(lanes):
        gaps = passes_over(whole[lane], [text[lane] for text in texts])
        for before, after, gap in zip((PACKED, *lengths), lengths, gaps, strict=False):
            assert gap < after
            assert gap == 0 or before % after


def test_a_child_of_shorter_samples_goes_on_in_the_middle_of_a_prepared_one():
    (parent, child, grandchild) = life([12, 24, 6], [7, 3, 9], lanes=1)
    whole = text_of(order_at(PACKED), np.arange(20))[0]
    assert np.array_equal(parent[0], whole[:84])
    assert np.array_equal(child[0], whole[96:168])  # half a sample of 24 was left
    assert np.array_equal(grandchild[0], whole[168:222])
    middle = life([12, 6], [7, 9], lanes=1)
    assert np.array_equal(np.concatenate(middle, axis=1)[0], whole[: 84 + 54])


@given(st.sampled_from(LENGTHS), st.sampled_from(LENGTHS), st.integers(1, 3), st.integers(0, 2000))
def test_a_ledger_is_carried_on_by_whole_epochs_and_tokens_rounded_up(old, new, lanes, turns):
    before, after = View.of(PACKED, old), View.of(PACKED, new)
    there = after.epoch_turns(SHARDS, lanes)
    draws = carry({"tales": turns * lanes}, {"tales": SHARDS}, lanes, before, after)["tales"]
    assert draws % lanes == 0
    epochs, inside = divmod(turns, before.epoch_turns(SHARDS, lanes))
    going_on = draws // lanes - epochs * there
    assert 0 <= going_on <= there
    assert going_on * new >= inside * old or going_on == there
    assert (going_on - 1) * new < inside * old


@given(st.sampled_from(LENGTHS[:5]), st.sampled_from(LENGTHS[:5]), st.integers(1, 3), st.integers(0, 2000))
def test_a_ledger_of_pieces_comes_back_to_what_it_was_where_nothing_was_rounded(old, new, lanes, turns):
    views = View.of(PACKED, old), View.of(PACKED, new)
    there = carry({"tales": turns * lanes}, {"tales": SHARDS}, lanes, *views)
    back = carry(there, {"tales": SHARDS}, lanes, *reversed(views))
    assert back["tales"] >= turns * lanes
    if old % new == 0:
        assert back == {"tales": turns * lanes}
        assert there == {"tales": turns * lanes * (old // new)}


def test_behind_what_joining_leaves_out_comes_the_next_epoch():
    shards = {"tales": SHARDS}  # 166 prepared samples, 41 groups of four
    for turns, there in ((164, 41), (165, 41), (166, 41), (167, 42)):
        assert carry({"tales": turns}, shards, 1, AS_PREPARED, View(joined=4)) == {"tales": there}


def test_a_corpus_that_is_too_small_for_a_view_keeps_its_epochs_for_the_grandchild():
    shards = {"tiny": [3]}
    away = carry({"tiny": 7}, shards, 1, AS_PREPARED, View(joined=4))
    assert carry(away, shards, 1, View(joined=4), AS_PREPARED) == {"tiny": 9}


def test_a_ledger_of_other_lanes_is_refused():
    with pytest.raises(ConfigError, match=r"order.lanes=4 does not divide the 6 samples of tales"):
        carry({"tales": 6}, {"tales": SHARDS}, 4, View(2), AS_PREPARED)


def test_shards_that_are_all_too_small_to_be_joined_are_refused():
    with pytest.raises(ConfigError, match=r"joins 32 prepared samples, but no shard of tales holds as many .*has 16"):
        order_at(32 * PACKED)
