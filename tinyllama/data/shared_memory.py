"""Names of the shared memory by which the ranks of a run on one node know what is cached; and its removal.

Streaming takes the first free number as a name and refuses to start on what a killed run has left behind. Here the name
is the run's own, so whoever starts the run again finds exactly its own leftovers, and nobody else's, and removes them.
"""

import hashlib
import os
from collections.abc import Iterable
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from tempfile import gettempdir

from tinyllama.data.mds import BARRIER_FILELOCK, CACHE_FILELOCK, SHM_TO_CLEAN

_FIRST = 10**6
"""Numbers below are left to streaming's own counting."""
_MARKS = "marks"


def prefix(run_id: str, folders: Iterable[Path], node: int) -> int:
    """The number that begins all names of a run on a node; the same on each of its ranks."""
    words = [run_id, str(os.getuid()), str(node), *map(str, folders)]
    digest = hashlib.sha256("\0".join(words).encode()).digest()
    return _FIRST + int.from_bytes(digest[:4], "big")


def marks(number: int) -> str:
    """The name of the marks of verified shards (integrity.py)."""
    return _name(number, _MARKS)


def remove(number: int) -> None:
    """Unlink the shared memory and the lock files of that prefix. Who has them open keeps them."""
    for part in (*SHM_TO_CLEAN, _MARKS):
        try:
            block = SharedMemory(_name(number, part))
        except FileNotFoundError:
            continue
        block.close()
        block.unlink()
    for part in (BARRIER_FILELOCK, CACHE_FILELOCK):
        Path(gettempdir(), _name(number, part)).unlink(missing_ok=True)


def _name(number: int, part: str) -> str:
    return f"{number:06}_{part}"
