"""What shows that a shard is not the one that its index describes."""

import os
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinyllama.data.integrity import Unsound, bears, examine, read_sample
from tinyllama.data.mds import LocalDataset
from tinyllama.data.shards import ShardWriter

SAMPLES = np.arange(50 * 9, dtype=np.uint16).reshape(50, 9)


@pytest.fixture
def path(tmp_path):
    """The only shard of a folder."""
    with ShardWriter(tmp_path / "split", SAMPLES.dtype, seq_len=8, shard_samples=64) as writer:
        writer.write(SAMPLES)
    return writer.folder / writer.shards[0].name


@pytest.fixture
def shard(path):
    return LocalDataset(str(path.parent)).shards[0]


def test_the_samples_of_a_sound_shard_are_read_as_they_were_written(shard):
    mark = examine(shard)
    assert bears(shard, mark)
    assert np.array_equal(np.stack([read_sample(shard, place, mark) for place in range(len(SAMPLES))]), SAMPLES)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_is_found_wherever_it_is(path, shard, data):
    content = path.read_bytes()
    place, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    flipped = bytearray(content)
    flipped[place] ^= 1 << bit
    path.write_bytes(flipped)
    with pytest.raises(Unsound, match="is damaged: its sha256 is"):
        examine(shard)
    path.write_bytes(content)
    examine(shard)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_truncated_shard_is_found_whatever_is_left(path, shard, data):
    content = path.read_bytes()
    left = data.draw(st.integers(0, len(content) - 1))
    path.write_bytes(content[:left])
    with pytest.raises(Unsound, match=rf"holds {left} bytes, but its index says {len(content)}"):
        examine(shard)
    path.write_bytes(content)


def test_a_shard_that_is_missing_or_cannot_be_read_or_compared_is_not_sound(path, shard):
    path.unlink()
    with pytest.raises(Unsound, match="is missing"):
        examine(shard)
    path.mkdir()
    with pytest.raises(Unsound, match=r"cannot be read \(Is a directory\)"):
        examine(shard)
    shard.raw_data.hashes.clear()
    with pytest.raises(Unsound, match="no sha256"):
        examine(shard)


def overwrite(path, content):
    """In place, with the times set back."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path, content):
    """By another file of the same times."""
    other = path.with_suffix(".other")
    other.write_bytes(content)
    shutil.copystat(path, other)
    other.replace(path)


@pytest.mark.parametrize("change", [overwrite, replace])
@pytest.mark.parametrize("keep", [slice(None), slice(100), slice(0)])
def test_nothing_is_read_from_a_shard_that_changed_after_it_was_marked(path, shard, change, keep):
    mark = examine(shard)
    change(path, path.read_bytes()[keep])
    assert not bears(shard, mark)
    assert [read_sample(shard, place, mark) for place in range(len(SAMPLES))] == [None] * len(SAMPLES)


def test_nothing_is_read_from_a_shard_that_went_away(path, shard):
    mark = examine(shard)
    path.unlink()
    assert not bears(shard, mark)
    assert read_sample(shard, 0, mark) is None
