"""Which corpus each position of a stage draws from, under weights that change with position. Closed form, no state.

Weights are piecewise linear in position. Cumulative rounding keeps every corpus near the integral of its weight: of two
corpora, the first has floor(integral + 1/2) of the first n positions and the other the rest. More corpora form a binary
tree of such choices, in which a node that has received m draws reckons from the position at which m draws were due to
it. So any position can be asked for directly.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import ArrayLike, NDArray

_HALF = 0.5 + 2**-16
"""What is added before rounding down. A little over a half, so that ties, which even weights produce all the time, do
not hang on the last bits of a float (under 1e-6 at a billion samples)."""

Counts = NDArray[np.int64]
Reals = NDArray[np.float64]


class Mixture:
    """Corpora and their weights at every position.

    Args:
        names: the corpora, in the order of the columns of all results.
        knots: (position, weights) with positions rising from 0; weights go linearly from knot to knot and are constant
            after the last. Only their proportions count; a corpus that is not named has weight 0.
    """

    def __init__(self, names: Sequence[str], knots: Sequence[tuple[float, Mapping[str, float]]]):
        positions = np.array([position for position, _ in knots], np.float64)
        assert positions[0] == 0, f"the first knot is at {positions[0]}"
        assert (np.diff(positions) > 0).all(), f"knots do not rise: {positions}"
        assert {name for _, weights in knots for name in weights} <= set(names), f"a knot names no corpus of {names}"
        self.names = tuple(names)
        self.knots = tuple(knots)
        self._integrals = _integrals(self.names, positions, [weights for _, weights in knots])
        self._root = _tree(self.names, self._integrals)
        self.deviation_bound = _deviation_bound(self._root)

    def counts(self, n: ArrayLike) -> Counts:
        """Draws of each corpus before position n: [..., corpora], summing to n."""
        n = np.asarray(n, np.int64)
        counts = np.empty((*n.shape, len(self.names)), np.int64)

        def descend(node: "_Node", received: Counts) -> None:
            if isinstance(node, _Leaf):
                counts[..., node.corpus] = received
                return
            first = node.first_count(received)
            descend(node.first, first)
            descend(node.second, received - first)

        descend(self._root, n)
        return counts

    def draws(self, n: ArrayLike) -> tuple[Counts, Counts]:
        """The corpus that position n draws from, and how many draws that corpus has had before."""
        n = np.asarray(n, np.int64)
        corpus, ordinal = np.empty((2, n.size), np.int64)

        def descend(node: "_Node", places: Counts, received: Counts) -> None:
            if isinstance(node, _Leaf):
                corpus[places], ordinal[places] = node.corpus, received
                return
            first = node.first_count(received)
            to_first = node.first_count(received + 1) > first
            descend(node.first, places[to_first], first[to_first])
            descend(node.second, places[~to_first], (received - first)[~to_first])

        descend(self._root, np.arange(n.size), n.ravel())
        return corpus.reshape(n.shape), ordinal.reshape(n.shape)

    def position(self, corpus: int, ordinal: int, stop: int) -> int:
        """Where a corpus is drawn from for the (ordinal + 1)-th time, among the positions before `stop`."""
        after = bisect_right(range(stop + 1), ordinal, key=lambda n: int(self.counts(n)[corpus]))
        assert after <= stop, f"corpus {corpus} is not drawn from {ordinal + 1} times before {stop}"
        return after - 1

    def integral(self, n: ArrayLike) -> Reals:
        """What the counts before position n should be: [..., corpora]."""
        return np.stack([each.at(np.asarray(n, np.float64)) for each in self._integrals], axis=-1)

    def in_rounds(self, lanes: int) -> "Mixture":
        """The same mixture with positions counted in rounds of `lanes` samples."""
        return Mixture(self.names, [(position / lanes, weights) for position, weights in self.knots])


class _Integral:
    """Integral over position of a weight that is linear between knots and constant after the last; and its inverse."""

    def __init__(self, positions: Reals, weights: Reals):
        widths = np.diff(positions)
        self.positions, self.weights = positions, weights
        self._slopes = np.append(np.diff(weights) / widths, 0.0)
        self._totals = np.append(0.0, np.cumsum(widths * (weights[:-1] + weights[1:]) / 2))

    def __add__(self, other: "_Integral") -> "_Integral":
        return _Integral(self.positions, self.weights + other.weights)

    def at(self, position: Reals) -> Reals:
        knot = np.searchsorted(self.positions, position, side="right") - 1
        into = position - self.positions[knot]
        total: Reals = self._totals[knot] + into * (self.weights[knot] + self._slopes[knot] * into / 2)
        return total

    def reaches(self, total: Reals) -> Reals:
        """Where the integral comes to `total`; where it stops growing if it never does."""
        knot = np.searchsorted(self._totals, total, side="right") - 1
        missing, weight, slope = total - self._totals[knot], self.weights[knot], self._slopes[knot]
        # The form of the quadratic's root that does not cancel. The denominator is 0 only where the weight has ended.
        denominator = weight + np.sqrt(np.maximum(weight * weight + 2 * slope * missing, 0.0))
        into = np.divide(2 * missing, denominator, out=np.zeros_like(missing), where=denominator > 0)
        position: Reals = self.positions[knot] + into
        return position


@dataclass(frozen=True)
class _Leaf:
    corpus: int
    integral: _Integral


class _Fork:
    """A set of corpora, divided in two; `first` has its share by cumulative rounding, `second` the rest."""

    def __init__(self, first: "_Node", second: "_Node"):
        self.first, self.second = first, second
        self.integral: _Integral = first.integral + second.integral
        living = np.flatnonzero(self.integral.weights > 0)
        self._last_share = _shares(first, self)[-1] if living.size else 0.0

    def first_count(self, received: Counts) -> Counts:
        """How many of the `received` draws of this set went to `first`."""
        due = received.astype(np.float64)
        position = self.integral.reaches(due)
        # A set whose weight has ended may hold a draw that was never due to it, divided as its last ones were.
        owed = self.first.integral.at(position) + self._last_share * (due - self.integral.at(position))
        return np.maximum(np.minimum(np.floor(owed + _HALF).astype(np.int64), received), 0)


_Node = _Leaf | _Fork


def _integrals(names: Sequence[str], positions: Reals, weights: Sequence[Mapping[str, float]]) -> list[_Integral]:
    sums = [math.fsum(each.values()) for each in weights]
    assert min(sums) > 0, f"weights that come to nothing: {weights}"
    assert min(min(each.values()) for each in weights) >= 0, f"negative weights: {weights}"
    return [
        _Integral(positions, np.array([each.get(name, 0.0) / total for each, total in zip(weights, sums, strict=True)]))
        for name in names
    ]


def _tree(names: Sequence[str], integrals: Sequence[_Integral]) -> _Node:
    """Join the two lightest sets until one is left (Huffman), so that light corpora are far from the root.

    Equal weights are ordered by name: in which order a mix lists its corpora changes nothing.
    """
    heap: list[tuple[float, str, _Node]] = [
        (float(integral.weights.mean()), name, _Leaf(corpus, integral))
        for corpus, (name, integral) in enumerate(zip(names, integrals, strict=True))
    ]
    heapify(heap)
    while len(heap) > 1:
        light, _, second = heappop(heap)
        heavy, name, first = heappop(heap)
        heappush(heap, (light + heavy, name, _Fork(first, second)))
    return heap[0][2]


def _shares(child: _Node, parent: _Fork) -> Reals:
    """Share of a child in its parent at each knot where the parent has weight; between knots it lies between these."""
    living = parent.integral.weights > 0
    return child.integral.weights[living] / parent.integral.weights[living]


def _deviation_bound(node: _Node, error: float = 0.0) -> float:
    """Greatest distance of a count from its integral below `node`, whose own count is off by at most `error`.

    Rounding adds at most a half, and the error of the parent is handed down in proportion.
    """
    if isinstance(node, _Leaf):
        return error
    children = (node.first, node.second)
    return max(_deviation_bound(child, _HALF + error * max(_shares(child, node), default=0.0)) for child in children)
