"""Prepared samples read at another length: cut into pieces, or several of them joined. Nothing is prepared again.

A sample of P tokens holds P + 1, the last of which is the first of its neighbour. So its pieces, and what joins
neighbours, hold one token more than their length too, and each token is still predicted once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllama.errors import ConfigError

Ids = NDArray[np.int64]
Shards = Sequence[int] | Ids
"""Prepared samples of each shard, in order."""


@dataclass(frozen=True)
class View:
    """How samples of a stage lie in prepared ones; one of both numbers is 1."""

    pieces: int = 1
    """A prepared sample makes so many. Sample `prepared * pieces + k` is the k-th of them."""
    joined: int = 1
    """So many neighbours of one shard make a sample; what a shard has beyond whole ones is left out."""

    @classmethod
    def of(cls, packed: int, seq_len: int) -> "View":
        """Samples of `seq_len` tokens in prepared ones of `packed`, one of which divides the other."""
        assert packed % seq_len == 0 or seq_len % packed == 0, f"{seq_len} tokens in samples of {packed}"
        return cls(max(1, packed // seq_len), max(1, seq_len // packed))

    def units(self, shards: Shards) -> Ids:
        """What an order arranges, of each shard: prepared samples, or groups of them that are joined."""
        return np.asarray(shards, np.int64) // self.joined

    def samples(self, shards: Shards) -> int:
        """How many samples there are in shards of so many prepared ones."""
        return int(self.units(shards).sum()) * self.pieces

    def left_out(self, shards: Shards) -> int:
        """Prepared samples that are in none."""
        return int((np.asarray(shards, np.int64) % self.joined).sum())

    def first(self, sample_ids: Ids, shards: Shards) -> Ids:
        """The prepared sample in which each of these begins; what is joined to it follows in the same shard."""
        units = sample_ids // self.pieces
        if self.joined == 1:
            return units
        sizes = np.asarray(shards, np.int64)
        ends, begins = np.cumsum(sizes // self.joined), np.cumsum(sizes) - sizes
        shard = np.searchsorted(ends, units, side="right")
        inside = units - (ends - sizes // self.joined)[shard]
        first: Ids = begins[shard] + inside * self.joined
        return first

    def overlapping(self, sample_id: int, other: "View", shards: Shards) -> list[int]:
        """The samples of another view that share text with one of this, rising."""
        first = int(self.first(np.array([sample_id]), shards)[0])
        begin = first * self.pieces + sample_id % self.pieces  # in pieces
        end = begin + self.joined
        if other.joined == 1:
            return list(range(begin * other.pieces // self.pieces, -(-end * other.pieces // self.pieces)))
        prepared = np.arange(begin // self.pieces, -(-end // self.pieces))
        sizes = np.asarray(shards, np.int64)
        groups, ends = sizes // other.joined, np.cumsum(sizes)
        shard = np.searchsorted(ends, prepared, side="right")
        group = (prepared - (ends - sizes)[shard]) // other.joined
        inside = group < groups[shard]
        return sorted(set(((np.cumsum(groups) - groups)[shard] + group)[inside].tolist()))

    def tokens(self, sample_id: int, first: int, read: Callable[[int], NDArray[Any]]) -> NDArray[Any]:
        """The tokens of a sample, [seq_len + 1].

        Args:
            first: what `first` says of it.
            read: gives the tokens of a prepared sample.
        """
        row = read(first)
        if self.joined > 1:
            others = [read(first + number) for number in range(1, self.joined)]
            return np.concatenate([row, *(other[1:] for other in others)])
        length = (len(row) - 1) // self.pieces
        begin = sample_id % self.pieces * length
        return row[begin : begin + length + 1]

    def epoch_turns(self, shards: Shards, lanes: int) -> int:
        """Samples of an epoch in each lane."""
        return int(self.units(shards).sum()) // lanes * self.pieces


AS_PREPARED = View()


def carry(ledger: Mapping[str, int], shards: Mapping[str, Shards], lanes: int, old: View, new: View) -> dict[str, int]:
    """A ledger of draws in samples of another view.

    Whole epochs stay whole epochs. Of the running one each lane goes on behind as many tokens as it has read, rounded
    up to whole samples, so that no text comes twice for it as long as neither view joins.

    Raises:
        ConfigError: the ledger is of other lanes.
    """
    if old == new:
        return dict(ledger)
    carried = {}
    for name, draws in ledger.items():
        require_whole_rounds(name, draws, lanes)
        # A corpus too small for one of the views is not read there: its epochs are carried on as if they had one turn.
        before, after = (max(1, view.epoch_turns(shards[name], lanes)) for view in (old, new))
        epochs, turns = divmod(draws // lanes, before)
        turns = -(-turns * old.joined * new.pieces // (old.pieces * new.joined))
        carried[name] = lanes * (epochs * after + min(turns, after))
    return carried


def require_whole_rounds(name: str, draws: int, lanes: int) -> None:
    """Raises ConfigError where ancestors have drawn a corpus in other lanes than a stage has."""
    if draws % lanes:
        raise ConfigError(
            f"order.lanes={lanes} does not divide the {draws} samples of {name} that the parent has drawn; use the "
            f"parent's order.lanes"
        )
