"""Whether two globs can match the same file. Arithmetic on their text; no disk is asked."""

import os.path
import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from functools import cache

_ATOM = re.compile(r"\*|\[!?\]?[^]]*\]|.", re.DOTALL)
"""A star, a class of characters such as [0-4], or one character."""
_LETTERS = [chr(code) for code in range(32, 127)]
"""Where two classes of characters are looked for what they share."""


def can_meet(one: str, other: str) -> bool:
    """Whether some path matches both globs, in which `**` stands for any number of folders."""
    segments, others = (os.path.normpath(glob).split("/") for glob in (one, other))
    return _can_meet(segments, others, "**", _segments_can_meet)


def _segments_can_meet(one: str, other: str) -> bool:
    return _can_meet(_ATOM.findall(one), _ATOM.findall(other), "*", _letters_can_meet)


def _letters_can_meet(one: str, other: str) -> bool:
    letters: Iterable[str] = next(([atom] for atom in (one, other) if len(atom) == 1 and atom != "?"), _LETTERS)
    return any(fnmatchcase(letter, one) and fnmatchcase(letter, other) for letter in letters)


def _can_meet(one: Sequence[str], other: Sequence[str], any_number: str, same: Callable[[str, str], bool]) -> bool:
    """Whether two rows of parts can stand for one row; the part `any_number` stands for any number of parts."""

    @cache
    def rest(i: int, j: int) -> bool:
        left, right = one[i : i + 1], other[j : j + 1]
        if not left and not right:
            return True
        if any_number in left:
            return rest(i + 1, j) or (bool(right) and rest(i, j + 1))
        if any_number in right:
            return rest(i, j + 1) or (bool(left) and rest(i + 1, j))
        return bool(left) and bool(right) and same(left[0], right[0]) and rest(i + 1, j + 1)

    return rest(0, 0)
