from hashlib import sha256

import numpy as np
import pytest

from tinyllama.data.mds import LocalDataset
from tinyllama.data.shards import ShardWriter, merge_shards, read_shards

SAMPLES = np.arange(40 * 9, dtype=np.uint16).reshape(40, 9)


def write(folder, samples, shard_bytes=500, dtype="uint16"):
    with ShardWriter(folder, np.dtype(dtype), shard_bytes) as writer:
        writer.write(samples.astype(dtype))
    return writer.shards


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_samples_come_back_from_streaming_as_they_were_written(tmp_path, dtype):
    write(tmp_path / "a", SAMPLES, dtype=dtype)
    back = LocalDataset(str(tmp_path / "a"))
    read = np.stack([back[index]["tokens"] for index in range(len(back))])
    assert read.dtype == np.dtype(dtype)
    assert np.array_equal(read, SAMPLES)


def test_shards_keep_to_their_size_and_carry_the_digest_of_their_file(tmp_path):
    shards = write(tmp_path / "a", SAMPLES)
    assert len(shards) > 2
    assert sum(shard.samples for shard in shards) == len(SAMPLES)
    for shard in shards:
        content = (tmp_path / "a" / shard.name).read_bytes()
        assert (shard.bytes, shard.sha256) == (len(content), sha256(content).hexdigest())
        assert shard.bytes <= 500


def test_merged_folders_read_as_one_in_order(tmp_path):
    parts = [tmp_path / name for name in ("a", "b", "c")]
    for part, samples in zip(parts, (SAMPLES[:17], SAMPLES[:0], SAMPLES[17:]), strict=True):
        write(part, samples)
    digests = [shard.sha256 for part in parts for shard in read_shards(part)]
    shards = merge_shards(parts, tmp_path / "whole")
    assert shards == read_shards(tmp_path / "whole")
    assert [shard.sha256 for shard in shards] == digests
    whole = LocalDataset(str(tmp_path / "whole"))
    assert np.array_equal(np.stack([whole[index]["tokens"] for index in range(len(whole))]), SAMPLES)
