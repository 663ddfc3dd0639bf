"""Which sample stands at each position of a stage. Arithmetic on the sizes of shards; any position is found directly.

A corpus has one endless order of draws, from the root of the family tree to every leaf. It depends on the corpus' name
and shards, the seed, lanes and window, and on nothing of the mix, the batch or the machines: a child goes on where its
parent stopped, and variants see a corpus that they share in the same order.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinyllama.errors import ConfigError
from tinyllama.planning.mixture import Mixture
from tinyllama.planning.permutation import permute, scramble, unpermute
from tinyllama.planning.views import AS_PREPARED, Ids, View, require_whole_rounds

_CUT, _EPOCH, _SHARDS, _BLOCK, _SHARD = range(5)
"""What a hash is for; each is the first word after the key."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples at some positions; all arrays have the shape of the positions."""

    corpus: Ids
    """Index into the order's names."""
    draw: Ids
    """Which draw of the corpus, counted from the root of the lineage."""
    sample_id: Ids
    """Which sample of the corpus, in the order of its shards; of those that the order's view makes of them."""


class SampleOrder:
    """The samples of a stage: a mixture over corpora, each with its own order.

    Args:
        mixture: weights of the corpora, positions in samples.
        shard_samples: prepared samples of each shard, for every corpus of the mixture.
        lanes: position n belongs to lane n % lanes, and each lane reads its own part of every corpus. All lanes draw
            the same corpus at once, so shares are exact to `lanes` samples.
        window: shards of a corpus among which samples are shuffled at a time.
        start_draws: draws that ancestors made, per corpus; what their `draws_before` said.
        view: what the stage's samples are made of. Of each lane, the pieces of a prepared sample come one after the
            other where the sample itself would; what is joined has an order of its own.

    Raises:
        ConfigError: a corpus has fewer samples than lanes, or ancestors had other lanes.
    """

    def __init__(
        self,
        mixture: Mixture,
        shard_samples: Mapping[str, Sequence[int] | Ids],
        *,
        seed: int,
        lanes: int = 1,
        window: int = 32,
        start_draws: Mapping[str, int] = MappingProxyType({}),
        view: View = AS_PREPARED,
    ):
        self.names, self.lanes, self.view = mixture.names, lanes, view
        self.shard_samples = {name: np.asarray(shard_samples[name], np.int64) for name in self.names}
        self._rounds = mixture.in_rounds(lanes)
        self._ledger = dict(start_draws)
        self._start = np.array([start_draws.get(name, 0) for name in self.names], np.int64)
        self._orders = []
        for name, sizes in self.shard_samples.items():
            units = view.units(sizes)
            if not units.any():
                raise ConfigError(
                    f"model.seq_len joins {view.joined} prepared samples, but no shard of {name} holds as many (the "
                    f"largest has {sizes.max(initial=0)}); train at a shorter length or add data to {name}"
                )
            if units.sum() < lanes:
                raise ConfigError(f"order.lanes={lanes} is more than the {units.sum()} samples of {name}; lower it")
            require_whole_rounds(name, start_draws.get(name, 0), lanes)
            self._orders.append(CorpusOrder(units, _key(name, seed), lanes, window, view.pieces))

    def samples(self, positions: ArrayLike) -> Samples:
        """What stands at these positions of the stage, in whatever order they are asked for."""
        rounds, lane = np.divmod(np.asarray(positions, np.int64), self.lanes)
        corpus, ordinal = self._rounds.draws(rounds)
        draw = self._start[corpus] + ordinal * self.lanes + lane
        sample_id = np.empty_like(draw)
        for index in np.unique(corpus):
            here = corpus == index
            sample_id[here] = self._orders[index].sample_ids(draw[here])
        return Samples(corpus, draw, sample_id)

    def prepared(self, samples: Samples) -> Ids:
        """The prepared sample in which each of these samples begins; the shape of the positions."""
        first = np.empty_like(samples.sample_id)
        for index in np.unique(samples.corpus):
            here = samples.corpus == index
            first[here] = self.view.first(samples.sample_id[here], self.shard_samples[self.names[index]])
        return first

    def occurrences(self, name: str, sample_id: int, stop: int) -> list[tuple[int, int]]:
        """Where the first `stop` positions of the stage have a sample of a corpus: (draw, position), rising.

        Found by going the way from position to sample backwards, for each epoch that the stage touches.
        """
        index = self.names.index(name)
        corpus, start, end = self._orders[index], int(self._start[index]), self.draws_before(stop)[name]
        found = []
        for epoch in range(start // corpus.epoch_samples, -(-end // corpus.epoch_samples)):
            draw = int(corpus.draws(sample_id, epoch))
            if start <= draw < end:
                ordinal, lane = divmod(draw - start, self.lanes)
                round_ = self._rounds.position(index, ordinal, stop // self.lanes)
                found.append((draw, round_ * self.lanes + lane))
        return found

    def draws_before(self, position: int) -> dict[str, int]:
        """The ledger at a position: draws per corpus from the root, ancestors' other corpora included.

        Raises:
            ConfigError: the position is in the middle of a round of lanes.
        """
        if position % self.lanes:
            raise ConfigError(
                f"order.lanes={self.lanes} does not divide {position} samples; a stage must end with a whole round"
            )
        draws = self._start + self.lanes * self._rounds.counts(position // self.lanes)
        return self._ledger | dict(zip(self.names, draws.tolist(), strict=True))

    def epoch_samples(self, name: str) -> int:
        """Draws in an epoch of the corpus."""
        return self._orders[self.names.index(name)].epoch_samples


class CorpusOrder:
    """The endless order of one corpus, by draw; each epoch is another permutation of the corpus.

    The shards are put in an order given by the key and cut into lanes of equal length (up to lanes - 1 samples are left
    over); draw k * lanes + lane is the k-th of its lane. An epoch puts the shards of a lane in a new order, shuffles
    each and cuts it into `window` pieces. Block t of the epoch holds piece 0 of shard t, piece 1 of shard t - 1 and so
    on (cyclically), shuffled again: from block to block one shard comes and one goes.

    With `pieces`, each of these samples is so many, which its lane draws one after the other.
    """

    def __init__(self, shard_samples: Sequence[int] | Ids, key: int, lanes: int = 1, window: int = 32, pieces: int = 1):
        sizes = np.asarray(shard_samples, np.int64)
        self.samples = int(sizes.sum()) * pieces
        self._turns = int(sizes.sum()) // lanes
        self.epoch_samples = self._turns * lanes * pieces
        assert self.epoch_samples > 0, f"{sizes.sum()} samples in {lanes} lanes"
        self.lanes, self._pieces = lanes, pieces
        self._key, self._window = key, window
        self._parts = _cut(sizes, scramble(key, _CUT, np.arange(sizes.size)), lanes)
        self._arrangements: dict[tuple[int, int], _Arrangement] = {}

    def sample_ids(self, draws: ArrayLike) -> Ids:
        """Sample ids, from 0 to `samples` - 1, of these draws; the shape of `draws`."""
        draws = np.asarray(draws, np.int64)
        turns, lane = np.divmod(draws, self.lanes)
        turns, piece = np.divmod(turns, self._pieces)
        epoch, index = np.divmod(turns, self._turns)
        ids, arrangement = np.empty_like(draws), epoch * self.lanes + lane
        for some in np.unique(arrangement).tolist():
            here = arrangement == some
            ids[here] = self._arrangement(some % self.lanes, some // self.lanes).sample_ids(index[here])
        ids *= self._pieces
        ids += piece
        return ids

    def draws(self, sample_ids: ArrayLike, epoch: int) -> Ids:
        """Which draw of an epoch brings each sample; -1 for the samples that its lanes leave over."""
        ids, piece = np.divmod(np.asarray(sample_ids, np.int64), self._pieces)
        draws = np.full_like(ids, -1)
        for lane, part in enumerate(self._parts):
            here = part.holds(ids)
            if here.any():
                turns = epoch * self._turns + self._arrangement(lane, epoch).index(ids[here])
                draws[here] = (turns * self._pieces + piece[here]) * self.lanes + lane
        return draws

    def _arrangement(self, lane: int, epoch: int) -> "_Arrangement":
        found = self._arrangements.get((lane, epoch))
        if found is None:
            found = _Arrangement(self._parts[lane], int(scramble(self._key, _EPOCH, lane, epoch)), self._window)
            self._arrangements[lane, epoch] = found
            while len(self._arrangements) > 2 * self.lanes:  # the present epoch of each lane and the next
                del self._arrangements[next(iter(self._arrangements))]
        return found


@dataclass(frozen=True, eq=False)
class _Part:
    """Stretches of shards that make up a lane: the id of the first sample of each, and its length."""

    first: Ids
    size: Ids

    def stretch(self, ids: Ids) -> Ids:
        """The stretch in which these samples lie, if they lie in any."""
        order = np.argsort(self.first)
        stretch: Ids = order[np.maximum(np.searchsorted(self.first, ids, side="right", sorter=order) - 1, 0)]
        return stretch

    def holds(self, ids: Ids) -> NDArray[np.bool_]:
        inside = ids - self.first[self.stretch(ids)]
        return (inside >= 0) & (inside < self.size[self.stretch(ids)])


class _Arrangement:
    """One epoch of one lane."""

    def __init__(self, part: _Part, key: int, window: int):
        order = np.argsort(scramble(key, _SHARDS, np.arange(part.size.size)), kind="stable")
        self._shards = _Part(part.first[order], part.size[order])
        self._key, self._window = key, min(window, order.size)
        blocks = sum(np.roll(self._piece(self._shards.size, piece)[1], piece) for piece in range(self._window))
        self._starts = np.append(0, np.cumsum(blocks))

    def sample_ids(self, index: Ids) -> Ids:
        """Sample ids at these places of the epoch, [n]."""
        block = np.searchsorted(self._starts, index, side="right") - 1
        blocks, which = np.unique(block, return_inverse=True)
        start, size = self._starts[block], self._starts[block + 1] - self._starts[block]
        place = start + permute(index - start, size, scramble(self._key, _BLOCK, blocks)[which])
        # Places in the epoch rise from piece to piece and from block to block, so one search finds all.
        shards, shifts, ends = (each.ravel() for each in self._pieces(blocks))
        piece = np.searchsorted(ends, place, side="right")
        shard, key = shards[piece], scramble(self._key, _SHARD, shards)[piece]
        ids: Ids = self._shards.first[shard] + permute(place + shifts[piece], self._shards.size[shard], key)
        return ids

    def index(self, ids: Ids) -> Ids:
        """The places of the epoch at which these samples stand, [n]; the inverse of `sample_ids`."""
        shard = self._shards.stretch(ids)
        size = self._shards.size[shard]
        inside = unpermute(ids - self._shards.first[shard], size, scramble(self._key, _SHARD, shard))
        piece = -(-(inside + 1) * self._window // size) - 1
        block = (shard + piece) % self._shards.size.size
        _, shifts, _ = self._pieces(block)
        place = inside - shifts[np.arange(ids.size), piece]
        start, size = self._starts[block], self._starts[block + 1] - self._starts[block]
        index: Ids = start + unpermute(place - start, size, scramble(self._key, _BLOCK, block))
        return index

    def _pieces(self, blocks: Ids) -> tuple[Ids, Ids, Ids]:
        """The pieces of some blocks, [blocks, window]: shard, from place in the epoch to place in the shard, end."""
        pieces = np.arange(self._window)
        shards = (blocks[:, None] - pieces) % self._shards.size.size
        begins, lengths = self._piece(self._shards.size[shards], pieces)
        ends = self._starts[blocks][:, None] + np.cumsum(lengths, axis=1)
        return shards, begins + lengths - ends, ends

    def _piece(self, size: Ids, piece: ArrayLike) -> tuple[Ids, Ids]:
        """Begin and length of a piece of a shard of `size` samples."""
        piece = np.asarray(piece)
        begin = size * piece // self._window
        return begin, size * (piece + 1) // self._window - begin


def _cut(sizes: Ids, hashes: NDArray[np.uint64], lanes: int) -> list[_Part]:
    """Put shards in the order of their hashes and cut the row into lanes of equal length."""
    order = np.argsort(hashes, kind="stable")
    ids = (np.cumsum(sizes) - sizes)[order]
    ends = np.cumsum(sizes[order])
    begins = ends - sizes[order]
    length = int(ends[-1]) // lanes
    parts = []
    for start in range(0, length * lanes, length):
        low, high = np.maximum(begins, start), np.minimum(ends, start + length)
        inside = low < high
        parts.append(_Part((ids + low - begins)[inside], (high - low)[inside]))
    return parts


def _key(name: str, seed: int) -> int:
    digest = hashlib.sha256(f"{name}\0{seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big")
