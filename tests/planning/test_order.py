"""The order of samples: each once per epoch, the same whoever asks, from root to leaf."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllama.errors import ConfigError
from tinyllama.planning.mixture import Mixture
from tinyllama.planning.order import CorpusOrder, SampleOrder

SHARDS = {"slim": [64] * 30 + [17], "star": [40] * 9, "proof": [25] * 6 + [3], "sky": [50] * 8}
BASIC = Mixture(["slim"], [(0, {"slim": 1})])
MATH = Mixture(["slim", "star", "proof"], [(0, {"slim": 1}), (1600, {"slim": 75, "star": 15, "proof": 10})])
CHINESE = Mixture(["sky", "slim"], [(0, {"slim": 1}), (1600, {"slim": 50, "sky": 50})])

corpora = st.builds(
    CorpusOrder,
    st.lists(st.integers(0, 60), min_size=1, max_size=25).filter(lambda sizes: sum(sizes) >= 6),
    st.integers(0, 2**64 - 1),
    lanes=st.integers(1, 6),
    window=st.integers(1, 40),
)


def order_of(mixture, **settings):
    return SampleOrder(mixture, {name: SHARDS[name] for name in mixture.names}, **{"seed": 3407, **settings})


def ids_of(order, name, samples):
    """(draw, sample id) of one corpus, in the order of positions."""
    here = samples.corpus == order.names.index(name)
    return np.stack([samples.draw[here], samples.sample_id[here]])


@given(corpora, st.integers(0, 10**6))
def test_an_epoch_holds_no_sample_twice_and_leaves_out_fewer_than_there_are_lanes(corpus, epoch):
    ids = corpus.sample_ids(np.arange(corpus.epoch_samples) + epoch * corpus.epoch_samples)
    assert np.unique(ids).size == ids.size > corpus.samples - corpus.lanes
    assert 0 <= ids.min() <= ids.max() < corpus.samples


@pytest.mark.slow
@given(corpora, st.data())
def test_any_draw_alone_gives_what_it_gives_in_sequence(corpus, data):
    epochs = corpus.sample_ids(np.arange(5 * corpus.epoch_samples))
    draws = np.array(data.draw(st.lists(st.integers(0, epochs.size - 1), min_size=1, max_size=20)))
    assert np.array_equal(corpus.sample_ids(draws), epochs[draws])


@given(corpora, st.integers(0, 10**6))
def test_from_each_sample_the_way_leads_back_to_its_draw(corpus, epoch):
    draws = np.arange(corpus.epoch_samples) + epoch * corpus.epoch_samples
    ids = corpus.sample_ids(draws)
    assert np.array_equal(corpus.draws(ids, epoch), draws)
    left_over = np.setdiff1d(np.arange(corpus.samples), ids)
    assert (corpus.draws(left_over, epoch) == -1).all()


@given(st.sampled_from([BASIC, MATH, CHINESE]), st.sampled_from([1, 2, 4]), st.integers(0, 1500), st.data())
@settings(max_examples=40)
def test_a_samples_occurrences_are_those_that_reading_every_position_finds(mixture, lanes, drawn, data):
    order = order_of(mixture, lanes=lanes, window=5, start_draws={"slim": drawn // lanes * lanes})
    stop = data.draw(st.integers(1, 6000 // lanes)) * lanes
    name = data.draw(st.sampled_from(mixture.names))
    sample_id = data.draw(st.integers(0, sum(SHARDS[name]) - 1))
    read = order.samples(np.arange(stop))
    here = (read.corpus == order.names.index(name)) & (read.sample_id == sample_id)
    expected = list(zip(read.draw[here].tolist(), np.flatnonzero(here).tolist(), strict=True))
    assert order.occurrences(name, sample_id, stop) == expected


def test_each_epoch_and_each_seed_is_shuffled_anew():
    epochs = CorpusOrder(SHARDS["slim"], key=1).sample_ids(np.arange(4 * 1937)).reshape(4, -1)
    other = CorpusOrder(SHARDS["slim"], key=2).sample_ids(np.arange(1937))
    for one, two in [(epochs[0], epochs[1]), (epochs[1], epochs[2]), (epochs[2], epochs[3]), (epochs[0], other)]:
        assert (one == two).mean() < 0.01


def test_samples_are_shuffled_across_a_moving_window_of_shards():
    shards = CorpusOrder([64] * 200, key=5, window=16).sample_ids(np.arange(12_800)) // 64
    live = np.array([np.unique(shards[start : start + 64]).size for start in range(0, 12_800, 64)])
    assert live.max() <= 2 * 16
    assert live.min() > 8


def test_a_lane_reads_its_own_shards_in_every_epoch():
    corpus = CorpusOrder([50] * 40, key=9, lanes=4, window=3)
    shards = corpus.sample_ids(np.arange(3 * 2000)).reshape(-1, 4) // 50
    lanes = [set(lane.tolist()) for lane in shards.T]
    assert [len(lane) for lane in lanes] == [10] * 4
    assert set.union(*lanes) == set(range(40))


@pytest.mark.parametrize("lanes", [1, 4])
def test_positions_asked_in_any_order_give_what_they_give_in_sequence(lanes):
    order = order_of(MATH, lanes=lanes)
    whole = order.samples(np.arange(4000))
    shuffled = np.random.default_rng(0).permutation(4000)
    for start in range(0, 4000, 37):
        some = shuffled[start : start + 37]
        found = order_of(MATH, lanes=lanes).samples(some) if start == 0 else order.samples(some)
        for name in ("corpus", "draw", "sample_id"):
            assert np.array_equal(getattr(found, name), getattr(whole, name)[some])
    assert order.samples(np.arange(12).reshape(3, 4)).sample_id.shape == (3, 4)


@given(st.integers(0, 3000).map(lambda rounds: 4 * rounds), st.sampled_from([1, 2, 4]))
@settings(max_examples=30)
def test_the_ledger_counts_what_was_drawn(position, lanes):
    start = {"slim": 400, "star": 0, "elsewhere": 7}
    order = order_of(MATH, lanes=lanes, start_draws=start)
    drawn = np.bincount(order.samples(np.arange(position)).corpus, minlength=3)
    ledger = order.draws_before(position)
    assert ledger == {"elsewhere": 7} | {
        name: start.get(name, 0) + count for name, count in zip(order.names, drawn.tolist(), strict=True)
    }


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("fork", [0, 1200, 4400])
def test_a_child_goes_on_exactly_where_its_parent_stopped(lanes, fork):
    parent = order_of(BASIC, lanes=lanes)
    child = order_of(MATH, lanes=lanes, start_draws=parent.draws_before(fork))
    grandchild = order_of(MATH, lanes=lanes, start_draws=child.draws_before(2000))
    life = [
        ids_of(order, "slim", order.samples(np.arange(length)))
        for order, length in ((parent, fork), (child, 2000), (grandchild, 1000))
    ]
    draws, ids = np.concatenate(life, axis=1)
    assert np.array_equal(draws, np.arange(draws.size))
    assert np.array_equal(ids, parent.samples(np.arange(draws.size)).sample_id)


def test_no_sample_comes_twice_from_root_to_leaf_before_its_corpus_is_exhausted():
    child = order_of(MATH, start_draws=order_of(BASIC).draws_before(1500))
    _, ids = ids_of(child, "slim", child.samples(np.arange(3000)))
    life = np.concatenate([order_of(BASIC).samples(np.arange(1500)).sample_id, ids])
    epoch = child.epoch_samples("slim")
    assert epoch == 1937
    assert np.unique(life[:epoch]).size == epoch
    assert np.unique(life[epoch : 2 * epoch]).size == life[epoch : 2 * epoch].size


def test_variants_see_a_shared_corpus_in_the_same_order():
    parent = order_of(BASIC).draws_before(1000)
    shared = [
        ids_of(order, "slim", order.samples(np.arange(3000)))
        for order in (order_of(MATH, start_draws=parent), order_of(CHINESE, start_draws=parent))
    ]
    both = min(each.shape[1] for each in shared)
    assert both > 1500
    assert np.array_equal(shared[0][:, :both], shared[1][:, :both])


def test_another_seed_is_another_order_of_the_same_mixture():
    one, two = (order_of(MATH, seed=seed).samples(np.arange(2000)) for seed in (1, 2))
    assert np.array_equal(one.corpus, two.corpus)
    assert (one.sample_id == two.sample_id).mean() < 0.05


def test_with_lanes_each_round_draws_one_corpus_and_shares_are_exact_to_a_round():
    order = order_of(MATH, lanes=4)
    rounds = order.samples(np.arange(8000)).corpus.reshape(-1, 4)
    assert (rounds == rounds[:, :1]).all()
    counts = np.eye(3)[rounds].sum(axis=1).cumsum(axis=0)
    due = MATH.integral(np.arange(4, 8001, 4))
    assert np.abs(counts - due).max() <= 4 * MATH.deviation_bound


def test_lanes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"order.lanes=400 is more than the 360 samples of star"):
        order_of(MATH, lanes=400)
    with pytest.raises(ConfigError, match=r"order.lanes=4 does not divide the 6 samples of slim"):
        order_of(MATH, lanes=4, start_draws={"slim": 6})
    with pytest.raises(ConfigError, match=r"order.lanes=4 does not divide 10 samples"):
        order_of(MATH, lanes=4).draws_before(10)


@pytest.mark.parametrize("lanes, digest", [(1, "11b604ca034ff31f"), (4, "4bc10dd2a3b9b37d")])
def test_the_order_is_that_of_every_earlier_version(lanes, digest):
    """If this fails, runs that were interrupted would go on with other samples: an order must never change."""
    found = order_of(MATH, lanes=lanes, window=5, start_draws={"slim": 1200}).samples(np.arange(6000))
    values = np.stack([found.corpus, found.draw, found.sample_id]).astype("<i8").tobytes()
    assert hashlib.sha256(values).hexdigest()[:16] == digest
