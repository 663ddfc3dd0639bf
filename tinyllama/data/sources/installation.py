"""The files of this Python installation: the standard library and the installed packages."""

import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

STANDARD_LIBRARY = "standard library"
# Packages lie inside the standard library's folder too; our own differ between a checkout and a wheel.
_SKIPPED = {"site-packages", "dist-packages", "__pycache__", "tinyllama", "hydra_plugins"}

_DOCSTRING = re.compile(r'^[ \t]*[rRuU]?"""(.*?)"""', re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class InstalledFile:
    """`name` is relative to where packages lie, so that it says the same on every machine."""

    package: str
    name: str
    path: Path

    def text(self) -> str:
        """The content; empty when it is no UTF-8."""
        try:
            return self.path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            return ""


def installed_files(suffix: str) -> Iterator[InstalledFile]:
    """Every file with that suffix, in an order that mixes packages and stays the same."""
    files = {file.name: file for file in _every_file() if file.name.endswith(suffix)}
    yield from sorted(files.values(), key=lambda file: sha256(file.name.encode()).digest())


def docstrings(source: str) -> list[str]:
    """The strings that begin a line of a module: nearly all are docstrings, and parsing would take minutes."""
    return _DOCSTRING.findall(source)


@cache
def _every_file() -> tuple[InstalledFile, ...]:
    library = Path(sysconfig.get_path("stdlib"))
    files = [InstalledFile(STANDARD_LIBRARY, name, path) for name, path in _walk(library)]
    for root in _package_roots():
        files += [InstalledFile(Path(name).parts[0], name, path) for name, path in _walk(root)]
    return tuple(files)


def _package_roots() -> list[Path]:
    """Folders of sys.path that packages are installed in; a checkout or the working directory is none."""
    roots = (Path(entry).resolve() for entry in dict.fromkeys(sys.path) if entry)
    return [root for root in roots if root.is_dir() and any(root.glob("*.dist-info"))]


def _walk(root: Path) -> Iterator[tuple[str, Path]]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED]
        for name in names:
            path = Path(folder) / name
            yield path.relative_to(root).as_posix(), path
