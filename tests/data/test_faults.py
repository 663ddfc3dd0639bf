"""Shards that are damaged, seen from the trainer: one clear error before a wrong sample, or recovery."""

import json
import shutil
from itertools import islice

import numpy as np
import pytest
import torch.distributed as dist

from tinyllama.data import streaming
from tinyllama.data.integrity import examine
from tinyllama.data.loader import train_loader, validation_loader
from tinyllama.data.streaming import ShardStore
from tinyllama.errors import DamageError
from tinyllama.planning.mixture import Mixture
from tinyllama.planning.order import SampleOrder
from tinyllama.world import World

MIXTURE = Mixture(["slim", "star"], [(0, {"slim": 2, "star": 1})])
STOP = 904
"""A little more than one epoch of slim and two of star."""


@pytest.fixture
def folders(packed, tmp_path):
    """A copy of two corpora, to be damaged."""
    return {name: shutil.copytree(packed[name], tmp_path / "local" / name) for name in MIXTURE.names}


def shard_names(folder):
    return [each["raw_data"]["basename"] for each in json.loads((folder / "index.json").read_text())["shards"]]


def shard_samples(folder):
    return [each["samples"] for each in json.loads((folder / "index.json").read_text())["shards"]]


@pytest.fixture
def order(packed):
    return SampleOrder(MIXTURE, {name: shard_samples(packed[name]) for name in MIXTURE.names}, seed=1, window=3)


def planned(order):
    samples = order.samples(np.arange(STOP))
    return list(zip(samples.corpus.tolist(), samples.sample_id.tolist(), strict=True))


def flip(path, place=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def remove(path):
    path.unlink()


def read(order, folders, found, **settings):
    """Reads to the end, adding what it sees to `found`; all of it must be as it was written."""
    batches = train_loader(
        order, folders, **{"micro_batch": 4, "world": World(), "start": 0, "stop": STOP, "run_id": "faults"} | settings
    )
    return check(batches, found)


def check(batches, found):
    for batch in batches:
        assert (batch.tokens[:, 0] == batch.corpus).all()
        assert (batch.tokens[:, 1] == batch.sample_id).all()
        assert (batch.tokens[:, 2:] == np.arange(2, 9) + 7).all()
        found += zip(batch.corpus.tolist(), batch.sample_id.tolist(), strict=True)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage, word", [(flip, "is damaged"), (truncate, "holds"), (remove, "is missing")])
def test_a_damaged_shard_is_named_before_any_of_its_samples_is_read(order, folders, damage, word, workers):
    name = shard_names(folders["slim"])[7]
    damage(folders["slim"] / name)
    first = sum(shard_samples(folders["slim"])[:7])
    its_own = range(first, first + shard_samples(folders["slim"])[7])
    found = []
    with pytest.raises(DamageError) as error:
        read(order, folders, found, workers=workers)
    message = str(error.value)
    assert message.startswith(f"corpora.slim: shard {folders['slim'] / name} {word}")
    assert message.endswith("restore it from a copy, or delete it and prepare slim again")
    assert "\n" not in message
    assert found == planned(order)[: len(found)]
    assert not [sample for corpus, sample in found if corpus == 0 and sample in its_own]
    assert error.value.exit_code == 3


def test_two_ranks_both_tell_of_the_shard(order, folders, on_ranks):
    flip(folders["star"] / shard_names(folders["star"])[1])

    def work(world):
        with pytest.raises(DamageError, match=r"corpora\.star: shard .*is damaged"):
            read(order, folders, [], world=world, workers=1)
        return True

    assert on_ranks(2, work) == [True, True]


@pytest.mark.parametrize("damage", [flip, truncate, remove])
def test_a_shard_that_is_damaged_after_it_was_verified_is_found_before_it_is_read_again(order, folders, damage):
    batches = train_loader(order, folders, micro_batch=4, world=World(), start=0, stop=STOP, run_id="faults", workers=0)
    found = [(0, sample) for batch in islice(batches, 10) for sample in batch.sample_id[batch.corpus == 0].tolist()]
    ends = np.cumsum(shard_samples(folders["slim"]))
    path = folders["slim"] / shard_names(folders["slim"])[np.searchsorted(ends, found[-1][1], side="right")]
    damage(path)
    with pytest.raises(DamageError, match=f"corpora.slim: shard {path} "):
        check(batches, found)


def test_a_verified_shard_that_is_copied_anew_is_read_on(order, folders, packed):
    found, batches = (
        [],
        train_loader(order, folders, micro_batch=4, world=World(), start=0, stop=STOP, run_id="faults", workers=0),
    )
    for step, batch in enumerate(batches):
        found += zip(batch.corpus.tolist(), batch.sample_id.tolist(), strict=True)
        if step == 10:
            for name, folder in folders.items():
                shutil.copytree(packed[name], folder, dirs_exist_ok=True)
    assert found == planned(order)


def remove_index(path):
    path.unlink()


def cut_index(path):
    path.write_text(path.read_text()[:-20])


def empty_index(path):
    path.write_text("[]")


@pytest.mark.parametrize("damage", [remove_index, cut_index, empty_index])
def test_an_index_that_cannot_be_used_is_named(order, folders, damage):
    damage(folders["star"] / "index.json")
    with pytest.raises(DamageError, match=r"corpora\.star: .*star/index.json cannot be used .*; prepare star again"):
        read(order, folders, [])


@pytest.mark.parametrize("damage, word", [(flip, "is damaged"), (truncate, "holds"), (remove, "is missing")])
def test_validation_tells_of_a_damaged_shard(folders, damage, word):
    path = folders["slim"] / shard_names(folders["slim"])[2]
    damage(path)
    batches = validation_loader(folders["slim"], samples=200, micro_batch=4, world=World(), seq_len=8)
    with pytest.raises(DamageError, match=f"{path} {word}"):
        list(batches)


def test_validation_does_not_mind_a_shard_that_it_does_not_read(folders):
    flip(folders["slim"] / shard_names(folders["slim"])[-1])
    batches = validation_loader(folders["slim"], samples=20, micro_batch=4, world=World(), seq_len=8)
    assert [sample for batch in batches for sample in batch.tokens[:, 1].tolist()] == list(range(20))


def test_validation_tells_of_an_index_that_cannot_be_used(folders):
    cut_index(folders["slim"] / "index.json")
    with pytest.raises(DamageError, match=r"slim/index.json cannot be used"):
        list(validation_loader(folders["slim"], samples=20, micro_batch=4, world=World(), seq_len=8))


def test_a_shard_is_verified_once_on_a_node_by_whichever_rank_reads_it_first(folders, on_ranks, monkeypatch):
    verified = folders["slim"].parent / "verified"

    def noting(shard):
        with verified.open("a") as file:
            file.write(f"{shard.raw_data.basename}\n")
        return examine(shard)

    monkeypatch.setattr(streaming, "examine", noting)

    def work(world):
        store = ShardStore({"slim": folders["slim"]}, world=world, run_id="once")
        for rank in (0, 1, 0):  # one after the other
            if world.rank == rank:
                assert [store.tokens(0, sample)[1] for sample in range(600)] == list(range(600))
            dist.barrier()
        store.close()

    on_ranks(2, work)
    assert verified.read_text().split() == shard_names(folders["slim"])
