"""Where the samples of a prepared corpus come from.

The documents of one split of a part, one after the other, are a stream, and sample k of the part is its tokens from
k * seq_len on. What each part leaves over, again one after the other, is one more stream: the tail, whose samples stand
at the end of the split.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from tinyllama.data.manifest import Manifest


class Stretch(NamedTuple):
    """Neighbouring tokens of a part's stream: from `begin` until before `end`."""

    part: int
    begin: int
    end: int


@dataclass(frozen=True)
class Strand:
    """Neighbouring shards that hold one stream, and the samples in them, as the split counts both."""

    shards: range
    samples: range


class SplitLayout:
    """The streams of a split, and what of them lies in which sample."""

    def __init__(self, manifest: Manifest, split: str) -> None:
        self.seq_len = manifest.seq_len
        self.left_over = [part.left_over[split] for part in manifest.parts]
        """Tokens of each part's stream that its samples do not hold."""
        self._shards = [part.shards[split] for part in manifest.parts]
        self._firsts = [0, *accumulate(manifest.splits[split].shard_samples)]

    @property
    def samples(self) -> int:
        return self._firsts[-1]

    @cached_property
    def parts(self) -> Sequence[Strand]:
        """Of each part."""
        borders = [0, *accumulate(self._shards)]
        return [self._strand(begin, end) for begin, end in zip(borders, borders[1:], strict=False)]

    @property
    def tail(self) -> Strand:
        return self._strand(sum(self._shards), len(self._firsts) - 1)

    @property
    def tokens(self) -> int:
        """Of all documents."""
        return sum(map(self.length, range(len(self.parts))))

    @property
    def in_no_sample(self) -> int:
        """Tokens at the end of the tail."""
        return sum(self.left_over) - self._tokens_in(self.tail)

    def length(self, part: int) -> int:
        """Tokens of a part's stream."""
        return self._tokens_in(self.parts[part]) + self.left_over[part]

    def shard_of(self, sample: int) -> tuple[int, int]:
        """The shard of a sample and its place there."""
        shard = bisect_right(self._firsts, sample) - 1
        return shard, sample - self._firsts[shard]

    def stretches(self, sample: int) -> Iterator[Stretch]:
        """The tokens of a sample, in their order; they come from several parts in the tail alone."""
        if sample < self.tail.samples.start:
            part = bisect_right([strand.samples.stop for strand in self.parts], sample)
            begin = (sample - self.parts[part].samples.start) * self.seq_len
            yield Stretch(part, begin, begin + self.seq_len + 1)
            return
        begin = (sample - self.tail.samples.start) * self.seq_len
        end, passed = begin + self.seq_len + 1, 0
        for part, count in enumerate(self.left_over):
            first, last = max(begin, passed), min(end, passed + count)
            if first < last:
                shift = self.length(part) - count - passed
                yield Stretch(part, first + shift, last + shift)
            passed += count

    def _tokens_in(self, strand: Strand) -> int:
        # The last token of a sample is the first of the next too.
        return len(strand.samples) * self.seq_len + 1 if strand.samples else 0

    def _strand(self, first: int, end: int) -> Strand:
        return Strand(range(first, end), range(self._firsts[first], self._firsts[end]))
