"""English prose of the installation: language topics, docstrings, package descriptions and licences."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pydoc_data import topics

from tinyllama.data.sources.installation import STANDARD_LIBRARY, InstalledFile, docstrings, installed_files

MIN_CHARACTERS = 400
# Generated clients repeat themselves, and no package should set the tone.
MAX_PACKAGE_CHARACTERS = 600_000
# Mathematics has a corpus of its own.
_ELSEWHERE = {"sympy", "mpmath"}

_WORD = re.compile(r"[(\"'*`]*[A-Za-z][a-z'’-]*[.,;:!?)\"'*`]*")
_COMMON = frozenset(
    ("the", "of", "and", "to", "in", "is", "that", "a", "an", "for", "it", "as", "be", "are", "with", "this", "on")
    + ("by", "or", "not", "which", "if", "from", "can", "will", "was", "at", "has", "have", "when", "used", "no", "any")
    + ("all", "you", "your", "its", "but", "they", "their", "we", "may", "must", "should", "such", "than", "then")
)


@dataclass(frozen=True)
class Prose:
    """A text of English, and which of SlimPajama's sets it stands for."""

    text: str
    set_name: str


def english() -> Iterator[Prose]:
    """Documents of English prose; no paragraph comes twice."""
    seen: set[bytes] = set()
    written: Counter[str] = Counter()
    for package, set_name, read in _sources():
        if written[package] > MAX_PACKAGE_CHARACTERS:
            continue
        kept = "\n\n".join(_unseen(paragraphs(read()), seen))
        if len(kept) >= MIN_CHARACTERS:
            written[package] += len(kept)
            yield Prose(kept, set_name)


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a text that are English sentences: no code, tables, headings or lists of parameters."""
    for block in re.split(r"\n\s*\n", text):
        paragraph = " ".join(block.split())
        words = paragraph.split(" ")
        if len(words) < 12 or not paragraph[0].isupper() or paragraph[-1] not in ".:!?)" or words[0][-1] == ":":
            continue
        plain = sum(_WORD.fullmatch(word) is not None for word in words)
        common = sum(word.lower() in _COMMON for word in words)
        if plain >= 0.85 * len(words) and common >= 0.25 * len(words):
            yield paragraph


def _sources() -> Iterator[tuple[str, str, Callable[[], str]]]:
    """(package, set name, what reads the text), the smallest kinds first so that none is crowded out."""
    for name in sorted(topics.topics):
        yield "topics", "RedPajamaBook", partial(topics.topics.__getitem__, name)
    for file in installed_files("METADATA"):
        yield "descriptions", "RedPajamaCommonCrawl", partial(_description, file)
    for suffix in ("LICENSE", "LICENSE.txt", "LICENSE.md", "COPYING"):
        for file in installed_files(suffix):
            yield "licences", "RedPajamaC4", file.text
    for file in installed_files(".py"):
        if file.package not in _ELSEWHERE:
            set_name = "RedPajamaWikipedia" if file.package == STANDARD_LIBRARY else "RedPajamaStackExchange"
            yield file.package, set_name, partial(_docstrings, file)


def _description(file: InstalledFile) -> str:
    return file.text().partition("\n\n")[2]


def _docstrings(file: InstalledFile) -> str:
    return "\n\n".join(docstrings(file.text()))


def _unseen(texts: Iterable[str], seen: set[bytes]) -> Iterator[str]:
    for text in texts:
        key = sha256(text.encode()).digest()
        if key not in seen:
            seen.add(key)
            yield text
