"""Code of the installation: Python modules, notebooks made of documented examples, and other languages."""

import doctest
from collections.abc import Iterator

from tinyllama.data.sources.installation import STANDARD_LIBRARY, docstrings, installed_files

MIN_CHARACTERS, MAX_CHARACTERS = 300, 100_000
OTHER_LANGUAGES = {"c": ".h", "javascript": ".js", "cython": ".pyx"}
# Mathematics has a corpus of its own.
_ELSEWHERE = {"sympy", "mpmath"}


def python_modules() -> Iterator[tuple[str, str]]:
    """(name, source) of modules: the standard library's first, then those of packages."""
    files = [file for file in installed_files(".py") if file.package not in _ELSEWHERE]
    for file in sorted(files, key=lambda file: file.package != STANDARD_LIBRARY):
        if MIN_CHARACTERS <= len(source := file.text()) <= MAX_CHARACTERS:
            yield file.name, source


def notebooks() -> Iterator[tuple[str, str]]:
    """(name, text) of notebooks as StarCoder writes them: the documented examples of a module, cell by cell."""
    for file in installed_files(".py"):
        if file.package in _ELSEWHERE or ">>>" not in (source := file.text()):
            continue
        cells = "".join(_cells(docstring) for docstring in docstrings(source))
        if len(cells) >= MIN_CHARACTERS:
            yield file.name.removesuffix(".py") + ".ipynb", f"<jupyter_start>{cells}"


def sources_in(language: str) -> Iterator[tuple[str, str]]:
    """(name, source) of files in one of OTHER_LANGUAGES."""
    for file in installed_files(OTHER_LANGUAGES[language]):
        if MIN_CHARACTERS <= len(source := file.text()) <= MAX_CHARACTERS:
            yield file.name, source


def _cells(docstring: str) -> str:
    """The examples of a docstring as notebook cells; nothing when it has none."""
    try:
        parts = doctest.DocTestParser().parse(docstring)
    except ValueError:  # an example that is not laid out as one
        return ""
    if len(parts) < 2:
        return ""
    return "".join(map(_cell, parts))


def _cell(part: str | doctest.Example) -> str:
    if isinstance(part, str):
        text = "\n".join(line.strip() for line in part.strip().splitlines())
        return f"<jupyter_text>{text}" if text else ""
    output = f"<jupyter_output>{part.want}" if part.want else ""
    return f"<jupyter_code>{part.source}{output}"
