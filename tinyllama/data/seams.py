"""Where a long text can be cut without changing its tokens.

A byte-pair model joins neighbours to pieces of its vocabulary, and nothing else decides. Between two characters that no
piece holds side by side nothing is ever joined: what stands before and after them is encoded as if it stood alone.
"""

from collections.abc import Collection, Iterable, Iterator
from itertools import pairwise

STRETCH = 1 << 12
"""Characters; sentencepiece takes longer per character, and more memory, the longer the text."""


def joined_pairs(pieces: Iterable[str]) -> frozenset[str]:
    """The characters that some piece holds side by side; a space is ▁, as in the pieces."""
    return frozenset(first + second for piece in pieces for first, second in pairwise(piece))


def cut(text: str, joined: Collection[str]) -> Iterator[str]:
    """Consecutive stretches of a text, of STRETCH characters, or some more where there is no seam."""
    begin = 0
    while len(text) - begin > STRETCH:
        end = begin + STRETCH
        while end < len(text) and text[end - 1 : end + 1].replace(" ", "▁") in joined:
            end += 1
        yield text[begin:end]
        begin = end
    if begin < len(text) or not text:
        yield text[begin:]
