"""Micro-batches in the planned order, on any number of ranks and workers, from real shards."""

import json
from itertools import islice
from threading import current_thread
from threading import enumerate as enumerate_threads

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyllama.data.loader import NO_SAMPLE, rank_positions, train_loader, validation_loader
from tinyllama.data.shards import ShardWriter
from tinyllama.data.streaming import ShardStore
from tinyllama.errors import ConfigError, DamageError
from tinyllama.planning.mixture import Mixture
from tinyllama.planning.order import SampleOrder
from tinyllama.world import World

MIXTURE = Mixture(["slim", "star", "sky"], [(0, {"slim": 1}), (400, {"slim": 60, "star": 30, "sky": 10})])


def order_of(folders, mixture=MIXTURE, **settings):
    indices = {name: json.loads((folders[name] / "index.json").read_text()) for name in mixture.names}
    shards = {name: [shard["samples"] for shard in index["shards"]] for name, index in indices.items()}
    return SampleOrder(mixture, shards, seed=3407, window=3, **settings)


def read(folders, *, order, **settings):
    """(corpus, draw, sample id) of the micro-batches, [steps, micro_batch, 3]; checks the tokens on the way."""
    found = []
    for batch in train_loader(order, folders, **{"world": World(), "run_id": "test_loader", **settings}):
        assert torch.equal(batch.tokens[:, 0], batch.corpus)
        assert torch.equal(batch.tokens[:, 1], batch.sample_id)
        found.append(torch.stack([batch.corpus, batch.draw, batch.sample_id], dim=-1).numpy())
    return np.stack(found)


def planned(order, start, stop):
    samples = order.samples(np.arange(start, stop))
    return np.stack([samples.corpus, samples.draw, samples.sample_id], axis=-1)


@given(
    st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.integers(0, 1000), st.integers(1, 5), st.integers(1, 3)
)
def test_the_ranks_share_each_micro_step_without_gap_or_overlap(size, micro_batch, lanes, start, steps, change):
    def positions(size, micro_batch, start, steps):
        begins = start + np.arange(steps) * size * micro_batch
        ranks = [
            rank_positions(begins, world=World(rank=rank, size=size), micro_batch=micro_batch, lanes=lanes)
            for rank in range(size)
        ]
        return np.stack(ranks, axis=1)

    before = positions(size, micro_batch, start, steps)
    after = positions(change, micro_batch + 1, start + before.size, steps)
    everything = np.concatenate([before.ravel(), after.ravel()])
    if lanes == 1:
        assert np.array_equal(everything, np.arange(start, start + everything.size))
    for step, found in enumerate(before):
        first = start + step * size * micro_batch
        assert np.array_equal(np.sort(found.ravel()), np.arange(first, first + size * micro_batch))


def test_with_a_lane_per_node_the_ranks_of_a_node_read_that_lane_alone():
    begins = np.arange(0, 160, 16)
    for rank in range(8):
        lanes = rank_positions(begins, world=World(rank=rank, size=8), micro_batch=2, lanes=4) % 4
        assert (lanes == rank // 2).all()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_loader_reads_the_planned_samples_in_order_and_stops(packed, workers):
    order = order_of(packed)
    found = read(packed, order=order, micro_batch=6, start=18, stop=1518, workers=workers)
    assert np.array_equal(found.reshape(-1, 3), planned(order, 18, 1518))


def test_two_ranks_read_what_one_rank_reads(packed, on_ranks):
    order = order_of(packed)

    def work(world):
        return read(packed, order=order, world=world, micro_batch=4, start=0, stop=800, workers=world.rank)

    found = np.stack(on_ranks(2, work), axis=1)
    assert np.array_equal(found.reshape(-1, 3), planned(order, 0, 800))


def test_two_ranks_with_two_lanes_read_a_lane_each(packed, on_ranks):
    order = order_of(packed, lanes=2)

    def work(world):
        return read(packed, order=order, world=world, micro_batch=4, start=0, stop=400)

    for lane, found in enumerate(on_ranks(2, work)):
        assert np.array_equal(found.reshape(-1, 3), planned(order, 0, 400)[lane::2])


def test_a_run_that_stopped_goes_on_with_another_micro_batch_and_repeats_and_loses_nothing(packed):
    order = order_of(packed)
    before = read(packed, order=order, micro_batch=4, start=0, stop=240)
    after = read(packed, order=order, micro_batch=10, start=240, stop=640)
    found = np.concatenate([before.reshape(-1, 3), after.reshape(-1, 3)])
    assert np.array_equal(found, planned(order, 0, 640))


def test_reading_ahead_leaves_the_random_numbers_of_the_run_alone(packed):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    for _ in islice(
        train_loader(order_of(packed), packed, micro_batch=2, world=World(), start=0, stop=8, run_id="r"), 2
    ):
        pass
    assert torch.equal(torch.rand(3), expected)


def test_a_resumed_run_at_its_end_reads_nothing(packed):
    order = order_of(packed)
    assert list(train_loader(order, packed, micro_batch=4, world=World(), start=80, stop=80, run_id="end")) == []


def test_shards_that_are_not_those_of_the_plan_are_refused(packed):
    order = SampleOrder(Mixture(["sky"], [(0, {"sky": 1})]), {"sky": [35, 36]}, seed=1)
    with pytest.raises(
        DamageError, match="holds 70 samples in .* but the plan was made for 71 in 2; prepare sky again"
    ):
        train_loader(order, packed, micro_batch=1, world=World(), start=0, stop=8, run_id="damaged")


def test_a_large_vocabulary_comes_through(tmp_path):
    with ShardWriter(tmp_path / "big", np.dtype("uint32"), seq_len=8, shard_samples=4) as writer:
        writer.write(np.full((4, 9), 151_000, np.uint32))
    order = order_of({"big": tmp_path / "big"}, Mixture(["big"], [(0, {"big": 1})]))
    (batch,) = train_loader(order, {"big": tmp_path / "big"}, micro_batch=4, world=World(), start=0, stop=4, run_id="b")
    assert batch.tokens.dtype == torch.int64
    assert batch.tokens.shape == (4, 9)
    assert (batch.tokens == 151_000).all()


def test_what_is_read_ahead_is_read_by_a_thread_in_order_and_no_more_than_was_said(packed, monkeypatch):
    read, threads = [], set()

    def counted(store, corpus, sample_id, tokens=ShardStore.tokens):
        read.append((corpus, sample_id))
        threads.add(current_thread())
        return tokens(store, corpus, sample_id)

    monkeypatch.setattr(ShardStore, "tokens", counted)
    order = order_of(packed)
    batches = train_loader(order, packed, micro_batch=4, world=World(), start=0, stop=400, run_id="ahead", ahead=3)
    for steps in range(1, 21):
        next(batches)
        assert len(read) <= 4 * (steps + 3)
    batches.close()
    assert len(threads) == 1
    assert not threads & set(enumerate_threads())
    expected = planned(order, 0, len(read))
    assert read == list(map(tuple, expected[:, [0, 2]].tolist()))


@pytest.mark.parametrize("samples, size, micro_batch", [(64, 1, 8), (61, 2, 8), (500, 3, 4), (2, 4, 8)])
def test_validation_shares_the_first_samples_among_the_ranks_once(packed, samples, size, micro_batch):
    batches = [
        list(
            validation_loader(
                packed["sky"], samples=samples, micro_batch=micro_batch, world=World(rank=rank, size=size), seq_len=8
            )
        )
        for rank in range(size)
    ]
    real = [batch.tokens[batch.sample_id != NO_SAMPLE, 1] for rank in batches for batch in rank]
    found = torch.cat(real)
    assert sorted(found.tolist()) == list(range(min(samples, 70)))
    assert max(len(batch.tokens) for rank in batches for batch in rank) <= micro_batch
    assert len({len(rank) for rank in batches}) == 1


def test_a_corpus_of_which_nothing_was_held_out_has_no_validation(tmp_path):
    assert list(validation_loader(tmp_path, samples=4, micro_batch=4, world=World(), seq_len=8)) == []


def test_validation_samples_that_can_neither_be_cut_nor_joined_are_refused(packed):
    with pytest.raises(ConfigError, match=r"model.seq_len=12, but .*sky was prepared with 8, .*; prepare it again"):
        list(validation_loader(packed["sky"], samples=4, micro_batch=4, world=World(), seq_len=12))
