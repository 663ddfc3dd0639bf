"""What a store has not been given yet of a run, kept in the run's directory: a letter for each life of the run.

A letter is written when a life begins and removed when the store has everything, so whoever finds one knows that
something is missing. Each life has a file of its own: who removes what he delivered cannot hit what came meanwhile.
"""

import fcntl
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from tinyllama.lineage.record import Dataset, RunRecord, Status

_INSIDE = ("journal", "done", "lock", "outbox", "evaluations")
"""Paths of a record that lie in the run's directory, and move with it."""


@dataclass(frozen=True)
class Letter:
    """One life of a run, as far as it does not stand in the run's journal."""

    store: str | None
    """tracking.uri of the store that it is meant for."""
    record: RunRecord
    artifacts: tuple[Path, ...] = ()
    status: Status | None = None
    """None until the life ends in good order."""

    def enclosing(self, paths: Sequence[Path]) -> "Letter":
        """The letter with more artifacts."""
        return replace(self, artifacts=(*self.artifacts, *(path.absolute() for path in paths)))

    @property
    def final_status(self) -> Status:
        """How the life ended, now that it has. What was killed could not say so, and may have reached its end."""
        return self.status or ("FINISHED" if self.record.done.is_file() else "KILLED")


class Outbox:
    """The letters of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._name = f"{time.time_ns():020d}.json"
        self._lock: IO[str] | None = None

    def put(self, letter: Letter) -> None:
        """Write this life's letter, whole or not at all, whatever happens; the last one counts.

        Raises:
            OSError: the run's directory cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / f".{self._name}"
        with aside.open("w", encoding="utf-8") as file:
            json.dump(_plain(letter), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self.folder / self._name)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def letters(self, store: str | None) -> list[tuple[Path, Letter]]:
        """Those for this store, the newest life last."""
        found = [(path, _parse(path)) for path in sorted(self.folder.glob("[0-9]*.json"))]
        return [(path, letter) for path, letter in found if letter.store == store]

    def is_empty(self) -> bool:
        return next(self.folder.glob("[0-9]*.json"), None) is None

    def remove(self, letters: Sequence[Path]) -> None:
        for path in letters:
            path.unlink(missing_ok=True)

    def others(self) -> "list[Outbox]":
        """The outboxes with letters of the family's other runs, whose directories stand beside this run's."""
        found = self.folder.parent.parent.glob(f"*/{self.folder.name}")
        outboxes = [Outbox(folder) for folder in sorted(found) if folder != self.folder]
        return [outbox for outbox in outboxes if not outbox.is_empty()]

    def take(self) -> bool:
        """Whether this process alone may deliver from now on, until `release` or its end."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._lock or (self.folder / "lock").open("a")
        return _try_lock(self._lock, fcntl.LOCK_EX)

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def is_training(record: RunRecord) -> bool:
    """Whether a process holds the run's directory to train it."""
    if not record.lock.exists():
        return False
    with record.lock.open("a") as file:
        return not _try_lock(file, fcntl.LOCK_SH)


def _try_lock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _plain(letter: Letter) -> dict[str, Any]:
    directory = letter.record.directory
    record = asdict(letter.record)
    del record["directory"]
    record |= {name: _below(directory, record[name]) for name in _INSIDE}
    artifacts = [_below(directory, path) for path in letter.artifacts]
    return {"store": letter.store, "status": letter.status, "artifacts": artifacts, "record": record}


def _below(directory: Path, path: Path) -> str:
    return str(path.relative_to(directory) if path.is_relative_to(directory) else path.absolute())


def _parse(path: Path) -> Letter:
    directory = path.absolute().parents[1]
    content = json.loads(path.read_text(encoding="utf-8"))
    # Letters of before runs were evaluated do not name the last of them, which is called what it is.
    record = content["record"] | {name: directory / content["record"].get(name, name) for name in _INSIDE}
    record["variants"] = tuple(record["variants"])
    record["datasets"] = tuple(Dataset(**dataset) for dataset in record["datasets"])
    artifacts = tuple(directory / text for text in content["artifacts"])
    return Letter(content["store"], RunRecord(**record, directory=directory), artifacts, content["status"])
