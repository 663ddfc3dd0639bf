"""Every sample is found in the documents that it is made of, those of what parts left over too."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tinyllama.data.manifest import Manifest, PartManifest, SplitManifest
from tinyllama.data.packing import Packer
from tinyllama.data.strands import SplitLayout

UINT16 = np.dtype(np.uint16)


def shards_of(samples: int, most: int) -> list[int]:
    return [min(most, samples - begin) for begin in range(0, samples, most)]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(1, 9), st.integers(1, 4))
def test_the_tokens_of_each_sample_are_those_of_its_stretches(lengths, seq_len, shard_samples):
    tokens = iter(range(sum(lengths)))
    streams = [np.array([next(tokens) for _ in range(length)], np.uint16) for length in lengths]
    samples, shards, parts, tail = [], [], [], Packer(seq_len, UINT16)
    last = []
    for stream in streams:
        packer = Packer(seq_len, UINT16)
        samples += list(packer.add(stream))
        own = shards_of(packer.samples, shard_samples)
        shards += own
        parts.append(PartManifest("", 1, {"train": len(own)}, {"train": len(packer.left_over)}))
        last += list(tail.add(packer.left_over))
    shards += shards_of(len(last), shard_samples)
    layout = SplitLayout(manifest(seq_len, shards, parts), "train")

    assert layout.samples == len(samples + last)
    assert [layout.length(part) for part in range(len(parts))] == lengths
    assert (layout.tokens, layout.in_no_sample) == (sum(lengths), len(tail.left_over))
    for number, sample in enumerate(samples + last):
        found = np.concatenate([streams[part][begin:end] for part, begin, end in layout.stretches(number)])
        assert found.tolist() == sample.tolist()
        shard, place = layout.shard_of(number)
        assert sum(shards[:shard]) + place == number and place < shards[shard]


def manifest(seq_len: int, shards: list[int], parts: list[PartManifest]) -> Manifest:
    split = SplitManifest(0, sum(shards), sum(shards) * seq_len, tuple(shards))
    return Manifest(
        corpus="tales", fingerprint="f", inputs="i", tokenizer_digest="t", add_eos=True, add_bos=False, seq_len=seq_len,
        documents=0, skipped={}, noted={}, bad_rows=(), source_sets={}, characters=0, tokens=0, left_over_tokens=0,
        bytes=0, train=split, validation=SplitManifest(0, 0, 0, ()), parts=tuple(parts), sources=(),
    )  # fmt: skip
