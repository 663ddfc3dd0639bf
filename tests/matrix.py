"""Parametrizations too large for every run: a subset that covers all pairs, the rest as soak tests."""

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import pytest


def pairs_of(**axes: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrize by all combinations of the axes' values; those that cover no further pair of values are soak tests.

    A pair is a value of one axis together with a value of another. The choice depends on the axes alone.
    """
    cells = list(product(*(range(len(values)) for values in axes.values())))
    chosen, open_pairs = [], set().union(*map(_pairs, cells))
    while open_pairs:
        best = max(cells, key=lambda cell: len(_pairs(cell) & open_pairs))  # the first of several
        chosen.append(best)
        open_pairs -= _pairs(best)
    values = list(axes.values())
    rows = [
        pytest.param(
            *(values[axis][place] for axis, place in enumerate(cell)),
            marks=() if cell in chosen else pytest.mark.soak,
            id="-".join(_name(values[axis][place]) for axis, place in enumerate(cell)),
        )
        for cell in cells
    ]
    return pytest.mark.parametrize(list(axes), rows)


def _pairs(cell: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
    """Pairs of (axis, place of the value)."""
    return set(combinations(enumerate(cell), 2))


def _name(value: Any) -> str:
    return str(getattr(value, "value", value))
