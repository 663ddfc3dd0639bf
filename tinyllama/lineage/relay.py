"""Training <-> a recorder in a process of its own, over a pipe. Knows no vendor.

A recorder may take seconds to import and minutes to reach its server. In a thread it would share the interpreter's lock
with training, and a data worker forked in the middle of its imports would inherit their locks; a process does neither.

The pipe to the recorder carries pickled lists of calls; its end means that training is gone. The pipe back carries
lines of text: a `Word`, and what is wrong.
"""

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, Protocol, TextIO

from tinyllama.lineage.record import Measurement, RunRecord, Status, Tracker

log = logging.getLogger(__name__)

Call = tuple[str, Any]
"""The name of a recorder's method and its argument."""

GATHER_SECONDS = 1.0
"""How long calls are gathered before they are sent: a store commits once for many steps."""
PENDING_CALLS = 100_000
"""How many calls wait for a recorder that is down before measurements are dropped (some 30 MB)."""
STUCK_SECONDS = 3.0
"""How long the end of training waits for a recorder whose store is out of reach."""
LONGEST_PAUSE_SECONDS = 60.0
"""Between two attempts to reach a store."""

_BOOT = "import sys; sys.path.append(sys.argv[1]); from {module} import main; main(*sys.argv[2:])"


class Word(StrEnum):
    """What a recorder says of itself."""

    STUCK = "stuck"
    """A call fails and is tried again."""
    REFUSED = "refused"
    """A call failed for good; the next ones go on."""
    BACK = "back"
    """No longer stuck."""


class Recorder(Protocol):
    """The other end, free to block and to raise."""

    def start(self, record: RunRecord) -> None: ...

    def metrics(self, measurements: Sequence[Measurement]) -> None: ...

    def artifact(self, path: Path) -> None: ...

    def finish(self, status: Status) -> None: ...

    def is_temporary(self, error: Exception) -> bool:
        """Whether the same call may succeed later."""


# ---------------------------------------------------------------- training's end


class RelayTracker(Tracker):
    """Hands every call to `main(*arguments)` of `module` in another process, and returns at once.

    `finish` waits up to `patience_seconds` for it, and not so long once it has said that its store is out of reach.
    """

    def __init__(self, module: str, arguments: Sequence[str], patience_seconds: float = 120.0) -> None:
        root = Path(__file__).parents[2]
        self._command = [sys.executable, "-P", "-W", "ignore", "-c", _BOOT.format(module=module), str(root), *arguments]
        self._patience_seconds = patience_seconds
        self._pending: SimpleQueue[Call | None] = SimpleQueue()
        self._ending = threading.Event()
        self._stuck = threading.Event()
        self._warned = False
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, record: RunRecord) -> None:
        try:
            # Its own session: a Ctrl-C or a job's signal that asks training to stop must not stop the record of it.
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            self._warn(f"could not be started: {error}")
            return
        for work in (self._send, self._listen):
            threading.Thread(target=work, args=(self._process,), name=f"tracking{work.__name__}", daemon=True).start()
        self._pending.put(("start", record))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        if self._pending.qsize() < PENDING_CALLS:
            taken = {name: float(value) for name, value in values.items()}
            self._pending.put(("metrics", Measurement(step, time.time_ns() // 1_000_000, taken)))

    def artifacts(self, paths: Sequence[Path]) -> None:
        for path in paths:
            self._pending.put(("artifact", path.absolute()))

    def finish(self, status: Status) -> None:
        if self._process is None:
            return
        self._pending.put(("finish", status))
        self._pending.put(None)
        self._ending.set()
        if not self._wait(self._process):
            self._warn("has not taken everything in time")
            self._process.kill()
            self._process.wait()
        self._process = None

    def _wait(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether the recorder ended well in the time it is given."""
        begun = time.monotonic()
        while time.monotonic() - begun < (STUCK_SECONDS if self._stuck.is_set() else self._patience_seconds):
            with suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=0.1) == 0
        return False

    def _send(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        try:
            with process.stdin as pipe:
                while (call := self._pending.get()) is not None:
                    self._ending.wait(GATHER_SECONDS)
                    calls = [call, *self._waiting()]
                    pickle.dump(calls, pipe)
                    pipe.flush()
        except OSError:
            self._warn("has ended early")

    def _waiting(self) -> Iterator[Call]:
        """The calls that are pending now, but for the mark of the end."""
        for _ in range(self._pending.qsize()):
            call = self._pending.get()
            if call is None:
                self._pending.put(None)
                return
            yield call

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as pipe:
            for line in pipe:
                word, _, problem = line.decode(errors="replace").strip().partition(" ")
                if word == Word.STUCK:
                    self._stuck.set()
                if word == Word.BACK:
                    self._stuck.clear()
                else:
                    self._warn(problem)

    def _warn(self, problem: str) -> None:
        level = logging.DEBUG if self._warned else logging.WARNING
        self._warned = True
        log.log(level, "tracking %s; training goes on, the run's directory holds all that was recorded", problem)


# ---------------------------------------------------------------- the recorder's end


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


def serve(recorder: Recorder, incoming: IO[bytes], outgoing: TextIO) -> None:
    """Carry out calls until training says or shows that it has ended. A call that may succeed later is tried again."""
    training = os.getppid()
    last = ""
    for name, argument in _merged(_received(incoming)):
        if not _carry_out(recorder, name, argument, outgoing, training) and name == "start":
            return
        last = name
    if last not in ("", "finish"):
        _carry_out(recorder, "finish", "KILLED", outgoing, training)


def _received(incoming: IO[bytes]) -> Iterator[list[Call]]:
    while True:
        try:
            yield pickle.load(incoming)
        except (EOFError, pickle.UnpicklingError):  # training has ended, or was killed in the middle of a message
            return


def _merged(messages: Iterator[list[Call]]) -> Iterator[Call]:
    """Neighbouring measurements of a message become one call."""
    for calls in messages:
        for name, group in groupby(calls, key=lambda call: call[0]):
            arguments = [argument for _, argument in group]
            if name == "metrics":
                yield name, arguments
            else:
                yield from ((name, argument) for argument in arguments)


def _carry_out(recorder: Recorder, name: str, argument: Any, outgoing: TextIO, training: int) -> bool:
    """Whether the call succeeded, at last. `training` is the process that wants to know."""
    pause_seconds, stuck = 1.0, False
    while True:
        try:
            getattr(recorder, name)(argument)
        except Exception as error:
            problem = f"failed to {name}: {' '.join(str(error).split())[:300] or type(error).__name__}"
            if not recorder.is_temporary(error):
                _tell(outgoing, Word.REFUSED, problem)
                return False
            _tell(outgoing, Word.STUCK, problem)
            stuck = True
        else:
            if stuck:
                _tell(outgoing, Word.BACK)
            return True
        if os.getppid() != training:
            return False
        time.sleep(pause_seconds)
        pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)


def _tell(outgoing: TextIO, word: Word, problem: str = "") -> None:
    with suppress(OSError):
        outgoing.write(f"{word} {problem}\n")
