"""Micro-batches of other lengths than the prepared one, from real shards."""

import json

import numpy as np
import pytest

from tinyllama.data.loader import NO_SAMPLE, train_loader, validation_loader
from tinyllama.data.mds import MDSWriter
from tinyllama.planning.mixture import Mixture
from tinyllama.planning.order import SampleOrder
from tinyllama.planning.views import View
from tinyllama.world import World

PACKED, SAMPLES = 8, {"near": 300, "far": 90}
OFFSETS = {"near": 0, "far": 10_000}
LENGTHS = [2, 4, 8, 16, 32]
MIXTURE = Mixture(list(SAMPLES), [(0, {"near": 2, "far": 1})])


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """Corpora in shards of about 35 samples, by name; a token is its own place in the text, counted from OFFSETS."""
    root = tmp_path_factory.mktemp("texts")
    for name, samples in SAMPLES.items():
        columns = {"tokens": "ndarray:uint16"}
        with MDSWriter(out=str(root / name), columns=columns, size_limit=1 << 10, hashes=["sha256"]) as writer:
            for sample in range(samples):
                tokens = np.arange(PACKED + 1) + sample * PACKED + OFFSETS[name]
                writer.write({"tokens": tokens.astype(np.uint16)})
    return {name: root / name for name in SAMPLES}


def shard_samples(folder):
    return [shard["samples"] for shard in json.loads((folder / "index.json").read_text())["shards"]]


def begins(name, folder, seq_len):
    """The first token of each sample of that length, counted shard by shard."""
    found, start = [], OFFSETS[name]
    for size in shard_samples(folder):
        found += range(start, start + size * PACKED - seq_len + 1, seq_len)
        start += size * PACKED
    return np.array(found)


def order_of(texts, seq_len, lanes=1):
    sizes = {name: shard_samples(folder) for name, folder in texts.items()}
    return SampleOrder(MIXTURE, sizes, seed=3, lanes=lanes, window=3, view=View.of(PACKED, seq_len))


@pytest.mark.parametrize("seq_len", LENGTHS)
@pytest.mark.parametrize("workers", [0, 2])
def test_each_sample_holds_the_text_that_its_number_names(texts, seq_len, workers):
    order = order_of(texts, seq_len)
    expected = [begins(name, texts[name], seq_len) for name in order.names]
    stop = 2 * order.epoch_samples("near") // 6 * 6
    loader = train_loader(
        order, texts, micro_batch=6, world=World(), start=6, stop=stop, run_id=f"views-{seq_len}", workers=workers
    )
    batches = list(loader)
    planned = order.samples(np.arange(6, stop))
    for field in ("corpus", "draw", "sample_id"):
        assert np.array_equal(np.concatenate([getattr(batch, field) for batch in batches]), getattr(planned, field))
    first = [expected[corpus][sample] for corpus, sample in zip(planned.corpus, planned.sample_id, strict=True)]
    rows = np.concatenate([batch.tokens for batch in batches])
    assert np.array_equal(rows, np.array(first)[:, None] + np.arange(seq_len + 1))


@pytest.mark.parametrize("seq_len", [4, 16])
def test_ranks_share_pieces_and_joined_samples_as_they_share_prepared_ones(texts, seq_len, on_ranks):
    order = order_of(texts, seq_len, lanes=2)

    def work(world):
        loader = train_loader(
            order, texts, micro_batch=4, world=world, start=8, stop=168, run_id=f"shared-{seq_len}-{world.size}"
        )
        return [batch.tokens.numpy() for batch in loader]

    def steps(size):
        return [{tuple(row) for rank in ranks for row in rank} for ranks in zip(*on_ranks(size, work), strict=True)]

    one, two = steps(1), steps(2)
    assert [one[step] | one[step + 1] for step in range(0, len(one), 2)] == two


@pytest.mark.parametrize("seq_len", LENGTHS)
def test_held_out_samples_are_counted_and_read_at_the_length_of_the_stage(texts, seq_len):
    expected = begins("far", texts["far"], seq_len)
    for wanted in (10, 10**6):
        batches = [
            batch
            for rank in range(3)
            for batch in validation_loader(
                texts["far"], samples=wanted, micro_batch=4, world=World(rank=rank, size=3), seq_len=seq_len
            )
        ]
        read = {
            int(sample): row.numpy()
            for batch in batches
            for sample, row in zip(batch.sample_id, batch.tokens, strict=True)
            if sample != NO_SAMPLE
        }
        assert sorted(read) == list(range(min(wanted, expected.size)))
        for sample, row in read.items():
            assert np.array_equal(row, expected[sample] + np.arange(seq_len + 1))


def test_held_out_shards_that_are_too_small_to_be_joined_give_nothing(texts):
    split = validation_loader(texts["far"], samples=10, micro_batch=4, world=World(), seq_len=64 * PACKED)
    assert list(split) == []
