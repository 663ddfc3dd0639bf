"""The store on MosaicML streaming: its private hooks, its remotes and cache, and what it leaves behind."""

import json
import os
import signal
from importlib.metadata import version
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllama.data import shared_memory
from tinyllama.data.loader import train_loader
from tinyllama.data.mds import SHM_TO_CLEAN, dataset_module, reader_module
from tinyllama.data.streaming import ShardFinder, ShardStore
from tinyllama.planning.mixture import Mixture
from tinyllama.planning.order import SampleOrder
from tinyllama.world import World

MIXTURE = Mixture(["slim", "star"], [(0, {"slim": 2, "star": 1})])


def order_of(folders):
    indices = {name: json.loads((folders[name] / "index.json").read_text()) for name in MIXTURE.names}
    shards = {name: [shard["samples"] for shard in index["shards"]] for name, index in indices.items()}
    return SampleOrder(MIXTURE, shards, seed=1, window=3)


def sample_ids(order, folders, stop, **settings):
    batches = train_loader(order, folders, micro_batch=4, start=0, stop=stop, **{"world": World(), **settings})
    found = []
    for batch in batches:
        assert (batch.tokens[:, 0] == batch.corpus).all()
        assert (batch.tokens[:, 1] == batch.sample_id).all()
        found += batch.sample_id.tolist()
    return found


def left_behind(run_id, folders):
    """Shared memory under the names of a run."""
    number = shared_memory.prefix(run_id, [folders[name] for name in MIXTURE.names], node=0)
    return [part for part in SHM_TO_CLEAN if Path(f"/dev/shm/{number:06}_{part}").exists()]


def test_streaming_is_the_version_whose_private_hooks_we_use():
    assert version("mosaicml-streaming") == "0.13.0", "check what data/streaming.py swaps, then raise the pin"


def test_the_swapped_hooks_are_in_use_and_put_back(packed):
    stock = [dict(vars(module)) for module in (dataset_module, reader_module)]
    store = ShardStore(packed, world=World(rank=5, size=8, local_rank=0, local_size=1), run_id="hooks")
    inside = store._dataset
    assert isinstance(inside.spanner, ShardFinder)
    assert inside._unique_rank_world.num_nodes == 8
    assert inside._unique_rank_world.node == 5
    assert inside._shm_prefix_int == shared_memory.prefix("hooks", packed.values(), node=5)
    assert [dict(vars(module)) for module in (dataset_module, reader_module)] == stock
    store.close()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12).filter(any))
def test_a_sample_is_found_in_its_shard(sizes):
    finder = ShardFinder(np.array(sizes))
    everything = [(shard, place) for shard, size in enumerate(sizes) for place in range(size)]
    assert [finder[sample] for sample in range(len(everything))] == everything
    for outside in (-1, len(everything)):
        with pytest.raises(IndexError):
            finder[outside]


def test_samples_of_shards_are_those_of_the_index(packed):
    store = ShardStore(packed, world=World(), run_id="sizes")
    assert {name: sizes.sum() for name, sizes in store.shard_samples.items()} == {"slim": 600, "star": 150, "sky": 70}
    assert store.tokens(2, 69)[:2].tolist() == [2, 69]
    store.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_remote_shards_are_fetched_unpacked_and_evicted(packed, compressed, tmp_path, workers):
    order = order_of(packed)
    cache = {name: tmp_path / name for name in MIXTURE.names}
    limit = 24_000  # about half of what the corpora take unpacked
    found = sample_ids(
        order,
        cache,
        600,
        workers=workers,
        run_id="remote",
        remotes={name: str(folder) for name, folder in compressed.items()},
        cache_limit=limit,
    )
    assert found == order.samples(np.arange(600)).sample_id.tolist()
    assert sum(file.stat().st_size for folder in cache.values() for file in folder.iterdir()) <= limit
    assert left_behind("remote", cache) == []


def test_shards_are_fetched_before_they_are_read(packed, compressed, tmp_path):
    cache = {name: tmp_path / name for name in MIXTURE.names}
    remotes = {name: str(folder) for name, folder in compressed.items()}
    store = ShardStore(cache, world=World(), run_id="ahead", remotes=remotes)
    chunks = [order_of(packed).samples(np.arange(start, start + 100)) for start in (0, 100)]
    assert list(store.arrived(chunks)) == chunks
    store._dataset.prepare_shard = None  # whatever is read from here on is there already
    for chunk in chunks:
        for corpus, sample_id in zip(chunk.corpus.tolist(), chunk.sample_id.tolist(), strict=True):
            assert store.tokens(corpus, sample_id)[1] == sample_id
    store.close()


@pytest.mark.parametrize("limit", [None, 24_000])
def test_two_ranks_share_a_cache_of_remote_shards(packed, compressed, tmp_path, on_ranks, limit):
    order = order_of(packed)
    cache = {name: tmp_path / name for name in MIXTURE.names}
    settings = {
        "run_id": "shared", "remotes": {name: str(folder) for name, folder in compressed.items()}, "workers": 1,
        "cache_limit": limit,
    }  # fmt: skip
    found = on_ranks(2, lambda world: sample_ids(order, cache, 400, world=world, **settings))
    by_rank = np.array(found).reshape(2, -1, 4).swapaxes(0, 1)
    assert by_rank.ravel().tolist() == order.samples(np.arange(400)).sample_id.tolist()
    assert left_behind("shared", cache) == []


def test_a_run_that_ends_or_is_left_early_leaves_no_shared_memory(packed):
    order = order_of(packed)
    for stop_after in (None, 3):
        batches = train_loader(order, packed, micro_batch=4, world=World(), start=0, stop=80, workers=1, run_id="early")
        assert len(list(islice(batches, stop_after))) == (stop_after or 20)
        del batches
        assert left_behind("early", packed) == []


def test_a_run_that_was_killed_starts_again_and_cleans_up_after_itself(packed):
    order = order_of(packed)

    def run_and_hang(ready) -> None:
        os.setsid()
        batches = train_loader(
            order, packed, micro_batch=4, world=World(), start=0, stop=80, workers=1, run_id="killed"
        )
        next(batches)
        ready.set()
        signal.pause()

    context = get_context("fork")
    ready = context.Event()
    victim = context.Process(target=run_and_hang, args=(ready,))
    victim.start()
    assert ready.wait(60)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.join()
    assert left_behind("killed", packed)
    assert sample_ids(order, packed, 80, run_id="killed") == order.samples(np.arange(80)).sample_id.tolist()
    assert left_behind("killed", packed) == []
