"""Training -> a recorder in a process of its own. Knows no vendor.

A recorder may take seconds to import and minutes to reach its server. In a thread it would share the interpreter's lock
with training, and a data worker forked in the middle of its imports would inherit their locks; a process does neither.

What it delivers it reads from the run's directory (lineage/delivery.py). The pipe to it carries nothing: its end means
that training is gone. The pipe back carries lines of text: a `Word`, and what there is to know.
"""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tinyllama.lineage.delivery import Word
from tinyllama.lineage.outbox import Letter, Outbox
from tinyllama.lineage.record import RunRecord, Status, Tracker

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 120.0
"""How long the end of training waits for a recorder at work."""
STUCK_SECONDS = 3.0
"""The same for a recorder whose store is out of reach."""

_BOOT = "import sys; sys.path.append(sys.argv[1]); from {module} import main; main(*sys.argv[2:])"


def recorder_command(module: str, arguments: Sequence[str]) -> list[str]:
    """`main(*arguments)` of `module` in a Python of its own, whatever the working directory holds."""
    root = Path(__file__).parents[2]
    return [sys.executable, "-P", "-W", "ignore", "-c", _BOOT.format(module=module), str(root), *arguments]


class Relay:
    """`main(*arguments, outbox)` of `module` in another process, which delivers what is pending there."""

    def __init__(self, module: str, arguments: Sequence[str], patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._command = recorder_command(module, arguments)
        self._patience_seconds = patience_seconds
        self._stuck = threading.Event()
        self._warned = False
        self._process: subprocess.Popen[bytes] | None = None
        self._listener: threading.Thread | None = None

    def start(self, outbox: Path) -> None:
        """Returns at once."""
        try:
            # Its own session: a Ctrl-C or a job's signal that asks training to stop must not stop the record of it.
            self._process = subprocess.Popen(
                [*self._command, str(outbox)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            self.warn(f"could not be started: {error}")
            return
        self._listener = threading.Thread(target=self._listen, args=(self._process,), name="tracking", daemon=True)
        self._listener.start()

    def finish(self) -> None:
        """Wait for it, but not so long once it has said that its store is out of reach."""
        process = self._process
        if process is None or self._listener is None or process.stdin is None:
            return
        process.stdin.close()
        if not self._wait(process):
            self.warn("has not taken everything in time")
            process.kill()
            process.wait()
        self._listener.join(timeout=10)  # it ends with the pipe; a busy machine may take a while to read it
        self._process = None

    def _wait(self, process: "subprocess.Popen[bytes]") -> bool:
        """Whether the recorder ended well in the time it is given."""
        begun = time.monotonic()
        while time.monotonic() - begun < (STUCK_SECONDS if self._stuck.is_set() else self._patience_seconds):
            with suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=0.1) == 0
        return False

    def _listen(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        with process.stdout as pipe:
            for line in pipe:
                word, _, matter = line.decode(errors="replace").strip().partition(" ")
                if word == Word.STUCK:
                    self._stuck.set()
                if word == Word.BACK:
                    self._stuck.clear()
                elif word == Word.LATE:
                    tell_late(matter)
                else:
                    self.warn(matter)

    def warn(self, problem: str) -> None:
        """Once aloud; a store that is down for a night must not fill the log."""
        level = logging.DEBUG if self._warned else logging.WARNING
        self._warned = True
        log.log(level, "tracking %s; nothing is lost: it stays in the run's directory until it is delivered", problem)


def tell_late(run: str) -> None:
    log.info("tracking has now taken what it had missed of %s", run)


class RelayTracker(Tracker):
    """Leaves in the run's outbox what a recorder in another process needs to know."""

    def __init__(self, relay: Relay, store: str | None) -> None:
        self._relay, self._store = relay, store
        self._outbox: Outbox
        self._letter: Letter | None = None

    def start(self, record: RunRecord) -> None:
        self._outbox = Outbox(record.outbox)
        self._put(Letter(self._store, record))
        self._relay.start(record.outbox)

    def artifacts(self, paths: Sequence[Path]) -> None:
        if self._letter is not None:
            self._put(self._letter.enclosing(paths))

    def finish(self, status: Status) -> None:
        if self._letter is not None:
            self._put(replace(self._letter, status=status))
            self._relay.finish()

    def _put(self, letter: Letter) -> None:
        self._letter = letter
        try:
            self._outbox.put(letter)
        except OSError as error:
            self._relay.warn(f"cannot be told what happens: {error}")
