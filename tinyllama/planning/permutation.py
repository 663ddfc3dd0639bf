"""Keyed hashes and permutations, a value at a time, with no state and no memory.

Written out here because the order of samples must never change, and numpy's generators may with its version.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Words = NDArray[np.uint64]

_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


def scramble(*words: ArrayLike) -> _Words:
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
    return _walk(_feistel, index, size, key)


def unpermute(place: ArrayLike, size: ArrayLike, key: ArrayLike) -> NDArray[np.int64]:
    """Which index `permute` puts at `place`."""
    return _walk(_unfeistel, place, size, key)


def _walk(
    step: Callable[[_Words, _Words, _Words], _Words], start: ArrayLike, size: ArrayLike, key: ArrayLike
) -> NDArray[np.int64]:
    """Take a step from `start`, and further ones from where it leads as long as that lies outside of [0, size)."""
    start, size, key = np.broadcast_arrays(*(np.asarray(each).astype(np.uint64) for each in (start, size, key)))
    shape = start.shape
    start, size, key = start.ravel(), size.ravel(), key.ravel()
    bits = np.frexp((size - np.uint64(1)).astype(np.float64))[1]
    half = ((np.maximum(bits, 1) + 1) // 2).astype(np.uint64)
    place = step(start, half, key)
    outside = np.flatnonzero(place >= size)
    while outside.size:
        place[outside] = step(place[outside], half[outside], key[outside])
        outside = outside[place[outside] >= size[outside]]
    return place.astype(np.int64).reshape(shape)


def _feistel(value: _Words, half: _Words, key: _Words) -> _Words:
    """One pass over numbers of 2 * half bits."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    high, low = value >> half, value & mask
    with np.errstate(over="ignore"):
        for _ in range(_ROUNDS):
            key = key + _GOLDEN
            high, low = low, high ^ (_finish(low ^ key) & mask)
    return (high << half) | low


def _unfeistel(value: _Words, half: _Words, key: _Words) -> _Words:
    """The same pass backwards."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    high, low = value >> half, value & mask
    with np.errstate(over="ignore"):
        for number in range(_ROUNDS, 0, -1):
            high, low = low ^ (_finish(high ^ (key + _GOLDEN * np.uint64(number))) & mask), high
    return (high << half) | low


def _finish(word: _Words) -> _Words:
    """SplitMix64's finisher: every bit of the input reaches every bit of the output."""
    word = word ^ (word >> _SHIFTS[0])
    word *= _MULTIPLIERS[0]
    word ^= word >> _SHIFTS[1]
    word *= _MULTIPLIERS[1]
    word ^= word >> _SHIFTS[2]
    return word
