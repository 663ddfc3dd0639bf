"""Resources that the first pytest worker builds and all workers of a session then read."""

import fcntl
import json
import os
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest


def shared_folder(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """The folder `name` of this session, built once by `build(folder)` however many workers ask for it.

    Tests read it only. A test that modifies it works on `copy_of(folder, ...)`.

    Raises:
        RuntimeError: `build` raised, in this worker or in another one; with its stack trace.
    """
    root = _root(factory)
    root.mkdir(exist_ok=True)
    folder, done, failed = root / name, root / f".{name}.done", root / f".{name}.failed"
    with (root / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists() and not failed.exists():
            folder.mkdir()
            try:
                build(folder)
            except BaseException:
                failed.write_text(traceback.format_exc(), encoding="utf-8")
                raise
            done.write_text(json.dumps(_state(folder)), encoding="utf-8")
    if failed.exists():
        raise RuntimeError(f"building {name} failed in another worker:\n{failed.read_text(encoding='utf-8')}")
    return folder


def altered(factory: pytest.TempPathFactory) -> list[str]:
    """Files of the shared folders that were written, added or removed after they were built."""
    found = []
    for done in sorted(_root(factory).glob(".*.done")):
        folder = done.with_name(done.name[1 : -len(".done")])
        before, now = json.loads(done.read_text(encoding="utf-8")), _state(folder)
        found += [str(folder / path) for path in before.keys() | now.keys() if before.get(path) != now.get(path)]
    return sorted(found)


def _root(factory: pytest.TempPathFactory) -> Path:
    """The folder of the session's shared folders, the same in all workers."""
    base = factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"


def _state(folder: Path) -> dict[str, list[int]]:
    """Size and time of the last write of each file, by its path below the folder; locks and databases aside."""
    files = {
        str(path.relative_to(folder)): path.lstat()
        for path in folder.rglob("*")
        if not path.is_dir() and path.suffix not in (".lock", ".db") and not path.name.endswith(("lock", "-journal"))
    }
    return {path: [stat.st_size, stat.st_mtime_ns] for path, stat in files.items()}


LINKED = (".mds", ".safetensors", ".json.zst")
"""Large files that the project replaces and never writes in place: copies share them."""


def copy_of(source: Path, target: Path) -> Path:
    """A copy that a test may modify; large immutable files are hard links, which a test replaces and never edits."""

    def link_or_copy(source: str, target: str) -> None:
        if source.endswith(LINKED):
            os.link(source, target)
        else:
            shutil.copy2(source, target)

    return Path(shutil.copytree(source, target, symlinks=True, copy_function=link_or_copy))
