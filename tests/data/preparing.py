"""Small raw corpora, what is made of them, and preparations that are killed."""

import json
import os
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from tinyllama.data.mds import LocalDataset

SEQ_LEN = 32
"""Tokens of the samples that tests prepare."""
STEPS = ("mkdir", "fsync", "link", "rename", "replace", "symlink", "unlink", "rmdir")
"""What a preparation changes the disk with, save writing files; each is a moment to be killed at."""


def write(tmp_path, texts, name="a.jsonl"):
    (tmp_path / "raw").mkdir(exist_ok=True)
    (tmp_path / "raw" / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def samples(folder, split):
    """All of a split, [n, SEQ_LEN + 1]."""
    stored = LocalDataset(str(folder / split))
    return np.stack([stored[index]["tokens"] for index in range(len(stored))])


def contents(folder):
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def listed(folder):
    """The names in a folder, and where links lead."""
    return sorted(f"{path.name} -> {path.readlink()}" if path.is_symlink() else path.name for path in folder.iterdir())


def parts(data: Path) -> dict[str, tuple[int, int]]:
    """The parts in the store below `data`; the numbers tell a part from one that was made anew."""
    return {
        path.parent.name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in data.rglob(".*-parts/[!.]*/part.json")
    }


def steps(work: Callable[[], object]) -> list[str]:
    """The steps that work in this process consists of."""
    return _run(work, None)


def kill(work: Callable[[], object], step: int | None = None) -> None:
    """Begin work in a process that is killed ahead of that step, if it does not kill itself."""
    victim = get_context("fork").Process(target=_run, args=(work, step))
    victim.start()
    victim.join()
    assert victim.exitcode == -signal.SIGKILL


def _run(work, last):
    taken, stock = [], {name: getattr(os, name) for name in STEPS}

    def counting(name):
        def step(*arguments, **options):
            if len(taken) == last:
                os.kill(os.getpid(), signal.SIGKILL)
            taken.append(name)
            return stock[name](*arguments, **options)

        return step

    try:
        vars(os).update({name: counting(name) for name in STEPS})
        work()
    finally:
        vars(os).update(stock)
    return taken
