"""Keyed hashes and permutations, a value at a time, with no state and no memory.

Written out here because the order of samples must never change, and numpy's generators may with its version.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


def scramble(*words: ArrayLike) -> NDArray[np.uint64]:
    """uint64 hash of non-negative integers, elementwise over arrays that broadcast (SplitMix64, chained)."""
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):  # arithmetic is meant modulo 2**64
        for word in words:
            state = _finish((state ^ np.asarray(word).astype(np.uint64)) + _GOLDEN)
    return state


def permute(index: ArrayLike, size: ArrayLike, key: ArrayLike) -> NDArray[np.int64]:
    """Where a keyed permutation of [0, size) puts `index`; elementwise over index, size and key.

    A Feistel network permutes the next even power of two (at most 4 * size); what falls outside [0, size) is sent
    through again until it falls inside, which keeps the map one to one.
    """
    index, size, key = np.broadcast_arrays(*(np.asarray(each).astype(np.uint64) for each in (index, size, key)))
    shape = index.shape
    place, size, key = index.ravel().copy(), size.ravel(), key.ravel()
    half = (np.maximum(np.frexp((size - np.uint64(1)).astype(np.float64))[1], 1) + 1) // 2
    half = half.astype(np.uint64)
    todo = np.arange(place.size)
    while todo.size:
        place[todo] = _feistel(place[todo], half[todo], key[todo])
        todo = todo[place[todo] >= size[todo]]
    return place.astype(np.int64).reshape(shape)


def _feistel(value: NDArray[np.uint64], half: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One pass over numbers of 2 * half bits."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    high, low = value >> half, value & mask
    with np.errstate(over="ignore"):
        for _ in range(_ROUNDS):
            key = key + _GOLDEN
            high, low = low, high ^ (_finish(low ^ key) & mask)
    return (high << half) | low


def _finish(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finisher: every bit of the input reaches every bit of the output."""
    word = (word ^ (word >> _SHIFTS[0])) * _MULTIPLIERS[0]
    word = (word ^ (word >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return word ^ (word >> _SHIFTS[2])
