"""A run's directory -> the store, in the recorder's process. Knows no vendor.

The directory is the truth and the store a replica of it: there is one way to bring it up to date, whether the run is
training now or ended a week ago while the store was down.
"""

import logging
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import IO, Protocol, TextIO

from tinyllama.lineage.evaluations import read_evaluations
from tinyllama.lineage.outbox import Outbox, is_training
from tinyllama.lineage.record import Measurement, RunRecord, Status
from tinyllama.lineage.tail import Tail

GATHER_SECONDS = 1.0
"""How often the journal is looked at: a store commits once for many steps."""
LONGEST_PAUSE_SECONDS = 60.0
"""Between two attempts to reach a store."""


class Word(StrEnum):
    """What a recorder says of itself, on a line of its own, before what there is to know about it."""

    STUCK = "stuck"
    """The store is out of reach; it is tried again."""
    REFUSED = "refused"
    """The store does not take something; the rest goes on."""
    BACK = "back"
    """No longer stuck."""
    LATE = "late"
    """A run of before has been delivered."""


class Recorder(Protocol):
    """Writes one run into a store; free to block and to raise, and to be asked again after that."""

    def start(self, record: RunRecord, milliseconds: int | None) -> None:
        """Find the run, or create it as begun then."""

    def metrics(self, measurements: Sequence[Measurement]) -> None:
        """Add those whose steps are missing."""

    def evaluations(self, measurements: Sequence[Measurement]) -> None:
        """Add what is missing of what was measured of checkpoints."""

    def artifact(self, path: Path) -> None: ...

    def finish(self, status: Status, milliseconds: int | None, typical_rate: float | None) -> None:
        """Close the run as ended then, at so many tokens per second in all."""

    def is_temporary(self, error: Exception) -> bool:
        """Whether the store is out of reach, as opposed to a call that it refuses."""


class Voice:
    """Tells training how it goes."""

    def __init__(self, outgoing: TextIO) -> None:
        self._outgoing = outgoing
        self._stuck = False

    def say(self, word: Word, matter: str = "") -> None:
        self._stuck = word is Word.STUCK or (self._stuck and word is not Word.BACK)
        with suppress(OSError):
            self._outgoing.write(f"{word} {matter}\n")

    def works(self) -> None:
        """The store has taken something."""
        if self._stuck:
            self.say(Word.BACK)


class Delivery:
    """Brings one life of a run in a store up to what the run's directory holds."""

    def __init__(self, recorder: Recorder, outbox: Outbox, store: str | None, voice: Voice) -> None:
        self._recorder, self._outbox, self._store, self._voice = recorder, outbox, store, voice
        self._life: Path | None = None
        """The letter of it; None until the store has opened the run."""
        self._tail: Tail
        self._sent: dict[Path, int] = {}

    def attempt(self, ended: bool) -> Word | None:
        """Deliver all that is missing, and tell what went wrong. If nothing did, the letters go at the life's end."""
        name = self._outbox.folder.parent.name
        if not self._outbox.take():
            self._voice.say(Word.STUCK, f"waits for another process that delivers {name}")
            return Word.STUCK
        try:
            refused = self._deliver(ended)
        except Exception as error:
            word = Word.STUCK if self._recorder.is_temporary(error) else Word.REFUSED
            self._voice.say(word, f"failed for {name}: {_in_a_line(error)}")
            return word
        if refused:
            self._voice.say(Word.REFUSED, f"failed for {name}, to {'; and to '.join(refused)}")
            return Word.REFUSED
        return None

    def _deliver(self, ended: bool) -> list[str]:
        """All that is missing; returns what the store refused. Nothing is pending any more if the life has ended.

        Raises:
            Exception: the store is out of reach, or refuses the run as a whole.
        """
        letters = self._outbox.letters(self._store)
        if not letters:
            return []
        life, letter = letters[-1]
        record = letter.record
        if self._life is None:
            tail = Tail(record.journal, record.first_step, record.every_steps)
            self._recorder.start(record, tail.first_milliseconds())
            self._voice.works()
            self._life, self._tail = life, tail
        elif life != self._life:  # the run goes on already, and the recorder of its next life does too
            return []
        refused = self._carry_out("take metrics", self._send_metrics)
        for path in letter.artifacts:
            refused += self._carry_out(f"take {path.name}", partial(self._send_artifact, path))
        refused += self._carry_out("take evaluations", partial(self._send_evaluations, record.evaluations))
        if ended:
            refused += self._carry_out("close the run", partial(self._finish, letter.final_status))
            if not refused:
                self._outbox.remove([path for path, _ in letters])
        return refused

    def _carry_out(self, purpose: str, work: Callable[[], None]) -> list[str]:
        """What went wrong, unless it was the store that is out of reach."""
        try:
            work()
        except Exception as error:
            if self._recorder.is_temporary(error):
                raise
            return [f"{purpose}: {_in_a_line(error)}"]
        return []

    def _send_metrics(self) -> None:
        for measurements in self._tail.measurements():
            self._recorder.metrics(measurements)
            self._voice.works()

    def _send_artifact(self, path: Path) -> None:
        """Again when it has changed; not at all when it is gone, for then nobody can."""
        if path.exists() and self._sent.get(path) != (stamp := _stamp(path)):
            self._recorder.artifact(path)
            self._sent[path] = stamp
            self._voice.works()

    def _send_evaluations(self, folder: Path) -> None:
        """Again when one has been added."""
        if folder.exists() and self._sent.get(folder) != _stamp(folder):
            self._recorder.evaluations(read_evaluations(folder))
            self._send_artifact(folder)

    def _finish(self, status: Status) -> None:
        self._recorder.finish(status, self._tail.last_milliseconds, self._tail.typical_rate())
        self._voice.works()


def serve(
    new_recorder: Callable[[], Recorder], outbox: Outbox, store: str | None, incoming: IO[bytes], outgoing: TextIO
) -> None:
    """Deliver a run while it trains and when it has ended, which the end of `incoming` shows, and what else is pending.

    Once training has ended and the store is out of reach, this goes on for as long as its parent wants to wait.
    """
    voice = Voice(outgoing)
    own = Delivery(new_recorder(), outbox, store, voice)
    training, pause, others_due = os.getppid(), 0.0, True
    while True:
        ended = _ends_within(pause, incoming)
        problem = own.attempt(ended)
        if problem is None and (others_due or ended):
            problem = _deliver_others(new_recorder, outbox, store, voice)
            others_due = False
        others_due = others_due or problem is Word.STUCK
        if ended and (problem is not Word.STUCK or os.getppid() != training):
            return
        pause = GATHER_SECONDS if problem is None else min(max(2 * pause, GATHER_SECONDS), LONGEST_PAUSE_SECONDS)
        if ended:
            time.sleep(GATHER_SECONDS)


def _deliver_others(
    new_recorder: Callable[[], Recorder], outbox: Outbox, store: str | None, voice: Voice
) -> Word | None:
    """What is pending of the family's runs that nobody trains or delivers now; what went wrong last."""
    problem = None
    for other in outbox.others():
        if not other.take():
            continue
        letters = other.letters(store)
        if letters and not is_training(letters[-1][1].record):
            found = Delivery(new_recorder(), other, store, voice).attempt(ended=True)
            if found is None:
                voice.say(Word.LATE, other.folder.parent.name)
            problem = found or problem
        other.release()
        if problem is Word.STUCK:
            break
    return problem


def detach() -> tuple[IO[bytes], TextIO]:
    """The pipes from and to training, out of reach of whoever prints. Signals meant for training are ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    logging.disable(logging.CRITICAL)
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w", buffering=1)
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(silence, stream)
    return incoming, outgoing


def _ends_within(seconds: float, pipe: IO[bytes]) -> bool:
    """Whether the writer of a pipe that carries nothing is gone."""
    return bool(select.select([pipe], [], [], seconds)[0])


def _stamp(path: Path) -> int:
    """Moves when a file, or any in a folder, is written."""
    return max((entry.stat().st_mtime_ns for entry in (path, *path.rglob("*"))), default=0)


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
