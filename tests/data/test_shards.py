import json
from contextlib import suppress
from hashlib import sha256

import numpy as np
import pytest

from tinyllama.data.mds import LocalDataset, MDSWriter
from tinyllama.data.shards import ShardWriter, merge_shards, read_shards

SAMPLES = np.arange(40 * 9, dtype=np.uint16).reshape(40, 9)


def write(folder, samples, shard_samples=16, dtype="uint16"):
    with ShardWriter(folder, np.dtype(dtype), samples.shape[1] - 1, shard_samples) as writer:
        writer.write(samples.astype(dtype))
    return writer.shards


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_samples_come_back_from_streaming_as_they_were_written(tmp_path, dtype):
    write(tmp_path / "a", SAMPLES, dtype=dtype)
    back = LocalDataset(str(tmp_path / "a"))
    read = np.stack([back[index]["tokens"] for index in range(len(back))])
    assert read.dtype == np.dtype(dtype)
    assert np.array_equal(read, SAMPLES)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("length", [9, 255, 256, 65_536])
def test_the_files_are_those_that_mosaics_own_writer_writes(tmp_path, dtype, length):
    samples = np.random.default_rng(0).integers(0, 65_536, (7, length)).astype(dtype)
    write(tmp_path / "ours", samples, shard_samples=4, dtype=dtype)
    entries = []
    for number, begin in enumerate((0, 4)):
        with MDSWriter(
            out=str(tmp_path / str(number)), columns={"tokens": f"ndarray:{dtype}"}, hashes=["sha256"], size_limit=None
        ) as writer:
            for sample in samples[begin : begin + 4]:
                writer.write({"tokens": sample})
        theirs = (tmp_path / str(number) / "shard.00000.mds").read_bytes()
        assert (tmp_path / "ours" / f"shard.{number:05d}.mds").read_bytes() == theirs
        [entry] = json.loads((tmp_path / str(number) / "index.json").read_text())["shards"]
        entries.append(entry | {"raw_data": entry["raw_data"] | {"basename": f"shard.{number:05d}.mds"}})
    assert json.loads((tmp_path / "ours" / "index.json").read_text()) == {"version": 2, "shards": entries}


def test_every_shard_but_the_last_is_full_however_the_samples_arrive(tmp_path):
    with ShardWriter(tmp_path / "a", SAMPLES.dtype, SAMPLES.shape[1] - 1, 16) as writer:
        for begin, end in ((0, 0), (0, 1), (1, 35), (35, 40)):
            writer.write(SAMPLES[begin:end])
    assert [shard.samples for shard in writer.shards] == [16, 16, 8]
    assert writer.shards == write(tmp_path / "b", SAMPLES)


def test_shards_carry_the_size_and_digest_of_their_file(tmp_path):
    for shard in write(tmp_path / "a", SAMPLES):
        content = (tmp_path / "a" / shard.name).read_bytes()
        assert (shard.bytes, shard.sha256) == (len(content), sha256(content).hexdigest())


def test_writing_that_fails_leaves_no_index_that_would_pass_for_a_whole(tmp_path):
    with suppress(OSError), ShardWriter(tmp_path / "a", SAMPLES.dtype, SAMPLES.shape[1] - 1, 16) as writer:
        writer.write(SAMPLES)
        raise OSError("no room")
    assert not (tmp_path / "a" / "index.json").exists()


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
