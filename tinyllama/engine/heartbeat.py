"""What a rank tells whoever watches it: what it is doing, and how many steps it has finished.

One word per process. A supervisor gives its ranks words in memory that it shares with them; elsewhere a rank's word is
its own, and tells it how long it has waited.
"""

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Word(ctypes.Structure):
    """The last that was heard of a rank."""

    _fields_ = (
        ("_doing", ctypes.c_char * 64),
        ("step", ctypes.c_int64),
        ("trains", ctypes.c_bool),
        ("spoken", ctypes.c_double),
        ("failed", ctypes.c_double),
    )
    step: int
    """The last step that it has finished."""
    trains: bool
    """Whether it has come to its steps; until then it holds nothing that is not on disk."""
    spoken: float
    """When it last said something, as time.monotonic() has it."""
    failed: float
    """When it first met an error; 0 if it has not."""

    def say(self, doing: str) -> None:
        self._doing, self.spoken = doing.encode()[:63], time.monotonic()

    @property
    def where(self) -> str:
        """For people."""
        return self._doing.decode(errors="replace") + (f", after step {self.step}" if self.trains else "")

    @property
    def silent_seconds(self) -> float:
        return time.monotonic() - self.spoken


_word = Word()
_tell: Callable[[BaseException], None] = lambda error: None  # noqa: E731


def own() -> Word:
    """The word of this process."""
    return _word


def use(word: Word, tell: Callable[[BaseException], None]) -> None:
    """Speak through this word from now on; `tell` hears of the first error."""
    global _word, _tell
    _word, _tell = word, tell


@contextmanager
def doing(activity: str) -> Iterator[None]:
    """Say what begins, and at once when it fails: peers that only lose their peer fail later, if not much.

    An error that leaves it ends the rank.
    """
    _word.say(activity)
    try:
        yield
    except BaseException as error:
        if not _word.failed:
            _word.failed = time.monotonic()
            _tell(error)
        raise


def finished(step: int) -> None:
    """A step is done, or those before the first one to come."""
    _word.step, _word.trains, _word.spoken = step, True, time.monotonic()
