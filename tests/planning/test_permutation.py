"""Keyed permutations are one to one, differ by key, and never change."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tinyllama.planning.permutation import permute, scramble, unpermute


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_a_permutation_is_one_to_one(size, key):
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 2**64 - 1)), min_size=1, max_size=20))
def test_each_element_has_its_own_size_and_key(cases):
    sizes, keys = (np.array(each, np.uint64) for each in zip(*cases, strict=True))
    index = sizes // np.uint64(2)
    alone = [int(permute(*case)) for case in zip(index, sizes, keys, strict=True)]
    assert permute(index, sizes, keys).tolist() == alone


def test_every_place_is_about_equally_likely():
    keys = scramble(np.arange(6000))
    for size in (2, 3, 5, 12):
        tally = np.bincount(permute(1, size, keys), minlength=size)
        assert abs(tally / 6000 - 1 / size).max() < 0.03


def test_neighbours_are_torn_apart():
    places = permute(np.arange(10_000), 10_000, 7)
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.03
    assert abs(np.corrcoef(places, permute(np.arange(10_000), 10_000, 8))[0, 1]) < 0.03


def test_hashes_are_those_of_every_earlier_version():
    assert scramble(1, 2, 3) == 15020427595393229491
    assert permute(np.arange(8), 8, 5).tolist() == [5, 2, 7, 6, 0, 1, 4, 3]


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_unpermute_goes_the_way_back(size, key):
    places = permute(np.arange(size), size, key)
    assert np.array_equal(unpermute(places, size, key), np.arange(size))
