"""Checkpoints that several ranks write and read together."""

import errno
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.conftest import at
from tests.engine.conftest import Trainer, cluster
from tinyllama.checkpoint import manifest
from tinyllama.checkpoint import store as store_module
from tinyllama.checkpoint.agreement import from_main
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.checkpoint.manifest import read_checkpoint
from tinyllama.checkpoint.store import CheckpointStore
from tinyllama.engine.snapshot import Snapshot
from tinyllama.errors import DamageError, TinyllamaError

pytestmark = pytest.mark.slow

InRanks = Callable[..., list[Any]]


@pytest.fixture(autouse=True)
def process_group() -> None:
    """The ranks make their own."""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "basic-0123")


class Troubled(Snapshot):
    """Of a rank that meets trouble when it writes its part for the first time."""

    def __init__(self, real: Snapshot, trouble: Callable[[], None]):
        super().__init__(**vars(real))
        object.__setattr__(self, "trouble", [trouble])

    def write(self, folder: Path) -> None:
        super().write(folder)
        if self.trouble:
            self.trouble.pop()()


def save(folder: RunFolder, trouble: Callable[[], None], minutes: float = 1.0) -> str | None:
    """In two ranks or more, of which the last one meets the trouble."""
    trainer = Trainer(cluster(timeout_minutes=minutes))
    folder.path.mkdir(exist_ok=True)
    store_module.log.addHandler(logging.FileHandler(folder.log))
    store = CheckpointStore(folder, "digest", trainer.world, keep=2)
    trainer.train(0, 1)
    real, is_last = trainer.engine.snapshot, trainer.world.rank == trainer.world.size - 1
    store.write(at(30), "c" * 64, (lambda: Troubled(real(), trouble)) if is_last else real)
    trainer.train(1, 2)
    failure = store.wait()
    store.close()
    return failure


def nothing() -> None:
    pass


def disk_full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def bug() -> None:
    raise ValueError("odd")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_ranks_write_behind_training_what_they_write_in_line(in_ranks: InRanks, folder: RunFolder, tmp_path: Path):
    def in_line() -> None:
        trainer = Trainer(cluster())
        trainer.train(0, 1)
        trainer.saved(tmp_path / "in-line")

    assert in_ranks(4, save, folder, nothing) == [None] * 4
    in_ranks(4, in_line)
    checkpoint = read_checkpoint(folder, 30, "digest")
    assert checkpoint.world_size == 4
    assert {entry.name for entry in checkpoint.path.iterdir()} == {*checkpoint.files, "manifest.json"}
    for path in (tmp_path / "in-line").iterdir():
        assert path.read_bytes() == (checkpoint.path / path.name).read_bytes(), path.name


@pytest.mark.parametrize("trouble", [disk_full, bug])
def test_a_rank_that_cannot_write_is_told_of_and_all_try_again(
    in_ranks: InRanks, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, trouble
):
    monkeypatch.setattr(store_module, "PAUSES_SECONDS", (0.1,))
    assert in_ranks(2, save, folder, trouble) == [None, None]
    read_checkpoint(folder, 30, "digest")
    assert "(of rank 1)" in folder.log.read_text()
    assert not folder.leftovers()


def test_a_rank_that_cannot_write_for_good_fails_the_checkpoint_on_all(
    in_ranks: InRanks, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(store_module, "PAUSES_SECONDS", ())
    main, other = in_ranks(2, save, folder, disk_full)
    assert main == other and "No space left on device (of rank 1)" in main
    assert folder.checkpoint_tokens() == [] and not folder.leftovers()


def test_a_rank_that_dies_meanwhile_leaves_half_a_checkpoint_that_nobody_takes_for_one(
    in_ranks: InRanks, folder: RunFolder
):
    assert in_ranks(2, save, folder, nothing) == [None, None]
    before = {path.name: path.read_bytes() for path in folder.checkpoint(30).iterdir()}
    other = RunFolder(folder.path)
    with pytest.raises((TinyllamaError, AssertionError)):
        in_ranks(2, save, other, killed)
    assert folder.checkpoint_tokens() == [30]
    assert {path.name: path.read_bytes() for path in folder.checkpoint(30).iterdir()} == before
    assert in_ranks(2, save, folder, nothing) == [None, None]
    assert not folder.leftovers()


def test_writing_may_take_longer_than_a_collective_may(in_ranks: InRanks, folder: RunFolder):
    assert in_ranks(2, save, folder, lambda: time.sleep(5), minutes=0.05) == [None, None]
    read_checkpoint(folder, 30, "digest")


def test_the_main_rank_verifies_for_all(in_ranks: InRanks, folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    def verify() -> tuple[int, Path, str]:
        world = Trainer(cluster()).world
        hashed: list[Path] = []
        describe = manifest.describe
        monkeypatch.setattr(manifest, "describe", lambda path: (hashed.append(path), describe(path))[1])
        found = from_main(world, lambda: read_checkpoint(folder, 30, "digest"))
        with pytest.raises(DamageError) as caught:
            from_main(world, lambda: read_checkpoint(folder, 30, "another"))
        return len(hashed), found.path, str(caught.value)

    in_ranks(2, save, folder, nothing)
    (files, path, error), *others = in_ranks(4, verify)
    assert files == 4 and path == folder.checkpoint(30) and "belongs to another run" in error
    assert others == [(0, path, error)] * 3
