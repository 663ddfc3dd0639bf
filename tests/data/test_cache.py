"""The room that a node must have for a remote's shards, and what is left of it for those that stay."""

from dataclasses import replace

import numpy as np
import pytest

from tests.data.versions import write_version
from tinyllama.data.cache import DOWNLOADS, cache_limit
from tinyllama.data.manifest import read_manifest
from tinyllama.data.streaming import ShardStore
from tinyllama.data.upload import upload_corpus
from tinyllama.errors import ConfigError
from tinyllama.world import World


@pytest.fixture
def version(tmp_path):
    dice = np.random.default_rng(0)  # tokens that cannot be packed
    splits = {split: dice.integers(0, 1 << 16, (2000, 9)) for split in ("train", "validation")}
    return write_version(tmp_path / "data", "demo", "tales", splits)


@pytest.fixture
def limit(compose, version):
    """limit(cache_gib=...) is what streaming may fill."""
    config = compose("+scale=demo", "paths.remote=s3://corpora", "cluster.processes=2", "cluster.workers=3")[-1]

    def find(remote="s3://corpora", **cluster):
        placed = replace(config, cluster=replace(config.cluster, **cluster), paths=replace(config.paths, remote=remote))
        return cache_limit(placed, [read_manifest(version)])

    return find


def test_the_least_room_that_the_message_names_is_enough_for_streaming_and_any_less_is_refused(
    limit, version, tmp_path
):
    with pytest.raises(ConfigError, match=r"cluster.cache_gib=1e-05 .* \(2 ranks x 3 readers x 5\) and 4 ") as error:
        limit(cache_gib=1e-5)
    least = float(str(error.value).rpartition("cluster.cache_gib=")[2].removesuffix(" or more"))
    with pytest.raises(ConfigError, match="or more"):
        limit(cache_gib=0.9 * least)
    upload_corpus(version, str(tmp_path / "remote"), "zstd:3")
    remote = tmp_path / "remote" / version.relative_to(tmp_path / "data") / "train"
    store = ShardStore(
        {"tales": tmp_path / "cache"}, world=World(), run_id="cache", remotes={"tales": str(remote)},
        cache_limit=limit(cache_gib=least),
    )  # fmt: skip
    shards = store._dataset.shards
    store.close()
    largest = max(shard.get_max_size() for shard in shards)
    assert limit(cache_gib=least) <= least * 2**30 - 2 * 3 * (DOWNLOADS + 1) * largest


def test_local_corpora_and_caches_without_limit_are_not_asked(limit):
    assert limit(cache_gib=None) is None
    assert limit(remote=None, cache_gib=1e-5) is None
