"""Being asked to stop, by SIGTERM, SIGUSR1 or Ctrl-C, before and after training. Light: imported before all else."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from tinyllama.errors import Stopped

ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""The signals that ask a run to stop; all mean the same."""

NOTHING_TO_SAVE = "stopped before there was anything to save; the same command begins where this one did"

_PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


def leave_at_once(quietly: bool = False, note: Callable[[int], None] = lambda number: None) -> None:
    """From now on these signals end the process, in good order: it holds nothing that could be lost.

    `note` is told which one it was.

    No exception: libraries swallow those, and a process that waits for its peers would not come to raise it.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        if not quietly:
            os.write(2, f"error: {NOTHING_TO_SAVE}\n".encode())  # print could meet itself half-way
        note(number)
        os._exit(Stopped.exit_code)

    for number in ASKING:
        signal.signal(number, leave)


def ignore() -> None:
    """From now on they change nothing, not even while Python shuts down: how the process ends is decided."""
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def held_back() -> Iterator[None]:
    """Those that come meanwhile are delivered at the end; to a process that is forked meanwhile, at its `release`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def release() -> None:
    """In a process that was forked while they were held back: it has decided what they do."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however it does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # it had ended before
            os._exit(1)
