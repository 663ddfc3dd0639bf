"""Checkpoints of one run, written behind training: aside, digested, read back, renamed. Nobody ever sees half of one.

Training waits for the copy into host memory alone. A thread of each rank writes the rank's part and leaves a mark; the
main rank's thread makes the folder, waits for the marks and does the rest. They talk through the folder only.
"""

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tinyllama import __version__
from tinyllama.checkpoint.agreement import from_main
from tinyllama.checkpoint.files import describe_all, why_not_written
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.checkpoint.manifest import Checkpoint
from tinyllama.checkpoint.placing import discard, place, remove, remove_leftovers
from tinyllama.engine.snapshot import Snapshot
from tinyllama.errors import DamageError
from tinyllama.planning.progress import Progress
from tinyllama.units import format_bytes
from tinyllama.world import World

log = logging.getLogger(__name__)

PAUSES_SECONDS = (5.0, 20.0)
"""After these a checkpoint that could not be written is tried again, unless a newer one is due."""
_GRACE_SECONDS = 5.0
"""For the checkpoint in flight when a run ends otherwise than in good order."""
_SHORTEST_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.01, 1.0


@dataclass
class _Flight:
    """A checkpoint on its way to the disk."""

    progress: Progress
    order_chain: str
    snapshot: Snapshot
    watch: Mapping[str, Any] | None
    hurry: threading.Event = field(default_factory=threading.Event)
    """Set when there is no time to try again."""
    over: threading.Event = field(default_factory=threading.Event)
    """Set when nobody is to wait for another rank any longer."""
    failure: str | None = None


class CheckpointStore:
    """Writes the checkpoints of one run, and keeps the last of them, the milestones and the end.

    Args:
        keep: how many of the latest stay.
        protected: positions in tokens of life that are never removed.
        adopted: what the checkpoint from which the run goes on says of itself, to be handed down.
        timeout_minutes: how long the main rank waits for another's part.
    """

    def __init__(
        self, folder: RunFolder, digest: str, world: World, keep: int, protected: Sequence[int] = (),
        adopted: Mapping[str, Any] | None = None, timeout_minutes: float = 10.0,
    ):  # fmt: skip
        self._folder, self._digest, self._world = folder, digest, world
        self._keep, self._protected, self._adopted = keep, set(protected), adopted
        self._timeout_seconds = 60 * timeout_minutes
        self._flight: _Flight | None = None
        self._thread: threading.Thread | None = None
        if world.is_main:
            remove_leftovers(folder)
        dist.barrier()

    def write(
        self, progress: Progress, order_chain: str, snapshot: Callable[[], Snapshot],
        extra: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Copy the state, and write it while training goes on. Collective.

        The checkpoint before it is waited for first. If that could not be written, it is not tried again: this one is
        newer. Failures are told where they happen and are not raised.

        Args:
            order_chain: counts on the main rank alone.
            snapshot: takes the copy.
            extra: what the manifest is to keep of the numerical watch.
        """
        if self._flight is not None and self._flight.progress.tokens not in self._protected:
            self._flight.hurry.set()
        self.wait()
        self._flight = _Flight(progress, order_chain, snapshot(), extra)
        work = self._lead if self._world.is_main else self._follow
        self._thread = threading.Thread(target=work, args=(self._flight,), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> str | None:
        """Until the last checkpoint is safe, or has failed for good: then the reason, in one line. Collective."""
        flight = self._flight
        if flight is None:
            return None
        flight.failure = from_main(self._world, lambda: self._landed(flight))
        flight.over.set()
        self._join()
        return flight.failure

    def require_saved(self) -> None:
        """Wait for the last checkpoint. Collective.

        Raises:
            DamageError: it could not be written; names the last good one.
        """
        if (failure := self.wait()) is not None:
            positions = self._folder.checkpoint_tokens()
            last = f"goes on from {self._folder.checkpoint(positions[-1])}" if positions else "starts anew"
            raise DamageError(f"{failure}; the run ends here, and the same command {last}")

    def close(self) -> None:
        """Leave in any case, also when other ranks are gone; what is in flight has a moment to come down."""
        if self._flight is not None:
            self._flight.hurry.set()
            self._join(_GRACE_SECONDS)
            self._flight.over.set()
            self._join()

    def _join(self, seconds: float | None = None) -> None:
        if self._thread is not None:
            self._thread.join(seconds)

    def _landed(self, flight: _Flight) -> str | None:
        self._join()
        return flight.failure

    # ------------------------------------------------------------ in the threads

    def _lead(self, flight: _Flight) -> None:
        """On the main rank: a folder for each attempt, until one has become a checkpoint."""
        for attempt, pause in enumerate((*PAUSES_SECONDS, 0.0)):
            aside = self._folder.writing(flight.progress.tokens, attempt)
            try:
                self._make(flight, aside)
            except Exception as error:  # whatever it is, the run goes on
                discard(self._folder, aside)
                flight.failure = self._told(flight, error)
            else:
                flight.failure = None
                self._prune(flight.progress.tokens)
                return
            last = not pause or flight.hurry.is_set()
            log.error("%s; tried again %swith the next one", flight.failure, "" if last else f"in {pause:g} s, or ")
            if last or flight.hurry.wait(pause):
                return

    def _make(self, flight: _Flight, aside: Path) -> None:
        aside.mkdir(parents=True)
        flight.snapshot.write(aside)
        self._await_others(flight, aside)
        written = sorted(aside.iterdir())
        checkpoint = Checkpoint(
            path=aside,
            digest=self._digest,
            progress=flight.progress,
            order_chain=flight.order_chain,
            world_size=self._world.size,
            versions={"tinyllama": __version__},
            files={path.name: found for path, found in zip(written, describe_all(written), strict=True)},
            adopted=self._adopted,
            watch=flight.watch,
        )
        place(checkpoint, self._folder)

    def _await_others(self, flight: _Flight, aside: Path) -> None:
        """Until every other rank has left its mark; the marks are removed.

        Raises:
            OSError: a rank could not write its part, or did not in time.
        """
        deadline = time.monotonic() + self._timeout_seconds
        missing, poll = set(range(1, self._world.size)), _SHORTEST_POLL_SECONDS
        while missing:
            for mark in [name for name in os.listdir(aside) if name.startswith(_MARK)]:
                rank, code = map(int, mark.removeprefix(_MARK).split("-"))
                if code:
                    raise OSError(code, f"{os.strerror(code)} (of rank {rank})", str(aside))
                missing.discard(rank)
                (aside / mark).unlink()
            if missing and (time.monotonic() > deadline or flight.over.wait(poll)):
                raise OSError(errno.ETIMEDOUT, f"rank {min(missing)} has not written its part", str(aside))
            poll = min(2 * poll, _LONGEST_POLL_SECONDS)

    def _follow(self, flight: _Flight) -> None:
        """On the other ranks: their part, and a mark, into every folder that the main rank makes."""
        for attempt in count():
            aside, poll = self._folder.writing(flight.progress.tokens, attempt), _SHORTEST_POLL_SECONDS
            while not aside.is_dir():
                if flight.over.wait(poll):
                    return
                poll = min(2 * poll, _LONGEST_POLL_SECONDS)
            code = 0
            try:
                flight.snapshot.write(aside)
            except Exception as error:
                code = getattr(error, "errno", None) or errno.EIO
                if not isinstance(error, OSError):
                    log.exception("rank %d cannot write its part of a checkpoint", self._world.rank)
            with suppress(OSError):  # then the main rank waits in vain, and says so
                (aside / f"{_MARK}{self._world.rank}-{code}").touch()

    def _told(self, flight: _Flight, error: Exception) -> str:
        size = format_bytes(flight.snapshot.total_bytes)
        why = why_not_written(error, self._folder.checkpoints)
        return f"the checkpoint of step {flight.progress.step}, {size}, could not be written: {why}"

    def _prune(self, newest: int) -> None:
        """Only older ones go: what lies beyond is damaged, and will be replaced when training passes there."""
        passed = [tokens for tokens in self._folder.checkpoint_tokens() if tokens <= newest]
        for tokens in [tokens for tokens in passed if tokens not in self._protected][: -self._keep]:
            try:
                remove(self._folder, self._folder.checkpoint(tokens))
            except OSError as error:
                log.warning(
                    "an old checkpoint could not be removed: %s", why_not_written(error, self._folder.checkpoints)
                )


_MARK = ".written-"
"""Before rank and error code, 0 if all is well, in the name of an empty file: that fits on a disk that is full."""
