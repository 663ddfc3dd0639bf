"""The ranks of one node that we start ourselves: started, watched, ended together, and what to tell of their end."""

import math
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tinyllama import signals
from tinyllama.engine import heartbeat
from tinyllama.engine.heartbeat import Word
from tinyllama.errors import Stopped, TinyllamaError

Main = Callable[..., int | None]

SETTLE_SECONDS = 3.0
"""How long ranks whose peer is gone may take to notice by themselves."""
GRACE_SECONDS = 10.0
"""And after that, told to end, until they are killed."""
_PULSE_SECONDS = 0.5
"""How often waiting is interrupted: a signal that comes just before the wait does not end it, and is heeded then."""
_TRACE_CHARACTERS = 20_000
"""More would not fit into a pipe that is read when the rank has ended."""


def rank_environment(rank: int, size: int, port: int) -> dict[str, str]:
    """The place of a rank of one node, as torch wants to be told of it."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


@dataclass(frozen=True)
class _End:
    """How a rank ended, or is about to, that did not end well."""

    rank: int
    code: int
    """Exit code; below 0 the signal that killed it."""
    when: float
    """time.monotonic() of its first error, or of its end."""
    waited_seconds: float
    """Since it last told something."""
    error: TinyllamaError | None = None
    fault: str = ""
    """What no person is to blame for, on one line."""
    trace: str = ""


class Supervisor:
    """Ranks of one node, from their start to the last one's end.

    Args:
        timeout_minutes: how long the ranks' collectives wait for a rank.
        faults: the file that gets the stack traces of ranks that fail.
    """

    def __init__(
        self, main: Main, args: tuple, size: int, timeout_minutes: float = math.inf, faults: Path | None = None
    ):
        self._main, self._args, self._size = main, args, size
        self._timeout_minutes, self._faults = timeout_minutes, faults
        self._reports: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self._words: Sequence[Word] = ()
        self._ends: dict[int, _End] = {}
        self._asked: int | None = None

    def outcome(self) -> int:
        """Start all, wait for all; 0.

        Raises:
            Stopped: the ranks were asked to.
            TinyllamaError: a rank failed: the first one, and what it failed of.
        """
        import torch._dynamo  # noqa: F401  # the first optimizer would, in each rank: two seconds

        with self._forwarding_signals():
            with signals.held_back():
                self._start()
            first = self._first_end()
            if first is None:
                return 0
            if first.code == Stopped.exit_code:
                # Whoever has trained is saving; before that there is nothing to wait for.
                self._join(math.inf if self._words[first.rank].trains else 0)
            else:
                self._join(SETTLE_SECONDS)
                first = self._first()
            silent = {rank: self._words[rank].silent_seconds for rank in self._alive() if rank not in self._ends}
            self._stop()
        raise self._verdict(first, silent)

    def _start(self) -> None:
        import torch

        context: Any = multiprocessing.get_context("spawn" if torch.cuda.is_initialized() else "fork")
        self._words = context.RawArray(Word, self._size)
        port = free_port()
        for rank in range(self._size):
            report, sender = context.Pipe(duplex=False)
            place = rank_environment(rank, self._size, port)
            job = (self._main, self._args, place, sender, self._words, os.getpid())
            process = context.Process(target=_run_rank, args=job, name=f"rank {rank}")
            process.start()
            sender.close()
            self._reports.append(report)
            self._processes.append(process)
            if self._asked is not None:  # another thread got the signal, and held nothing back
                os.kill(process.pid, self._asked)

    # ------------------------------------------------------------ waiting

    def _first_end(self) -> _End | None:
        """Returns as soon as a rank has failed, or all have ended well."""
        while self._alive() and not self._ends:
            self._look(_PULSE_SECONDS)
        self._look(0)
        return self._first() if self._ends else None

    def _first(self) -> _End:
        """One that was killed, then the one with the earliest error: the others only lost their peer."""
        return min(self._ends.values(), key=lambda end: (end.code > 0, end.when))

    def _alive(self) -> list[int]:
        return [rank for rank, process in enumerate(self._processes) if process.is_alive()]

    def _join(self, seconds: float) -> None:
        """Until all have ended, or the time is over."""
        deadline = time.monotonic() + seconds
        while self._alive() and (left := deadline - time.monotonic()) > 0:
            self._look(min(_PULSE_SECONDS, left))
        self._look(0)

    def _look(self, seconds: float) -> None:
        """Wait so long for a rank to end or to fail, and note of those that did not end well how they did."""
        alive = self._alive()
        reports = [self._reports[rank] for rank in alive if rank not in self._ends]
        wait([*reports, *(self._processes[rank].sentinel for rank in alive)], timeout=seconds)
        for rank, process in enumerate(self._processes):
            if rank not in self._ends and (end := self._how(rank, process.exitcode)) is not None:
                self._ends[rank] = end

    def _how(self, rank: int, code: int | None) -> _End | None:
        """How a rank failed: by its own word, which comes before its end, or by its exit code."""
        word, error, fault, trace = self._words[rank], None, "", ""
        if self._reports[rank].poll():
            with suppress(EOFError):  # it ended without a word
                error, fault, trace = self._reports[rank].recv()
                code = error.exit_code if error else 1
        if not code:
            return None
        when = word.failed or time.monotonic()
        return _End(rank, code, when, when - word.spoken, error, fault, trace)

    def _stop(self) -> None:
        """All are asked to end; then they must."""
        for rank in self._alive():
            self._processes[rank].terminate()
        self._join(GRACE_SECONDS)
        for process in self._processes:
            process.kill()
            process.join()

    # ------------------------------------------------------------ what is told

    def _verdict(self, first: _End, silent: dict[int, float]) -> TinyllamaError:
        """`silent`: of ranks that had to be ended, the seconds since they last told something."""
        if first.code == Stopped.exit_code:
            return first.error or Stopped(signals.NOTHING_TO_SAVE)
        if first.error is not None:
            return first.error
        # NCCL aborts a rank that has waited too long; gloo raises an error in it.
        timed_out = first.waited_seconds >= self._timeout_minutes * 60 and first.code in (1, -signal.SIGABRT)
        frozen = silent if timed_out else {}
        if frozen:
            cause = "; ".join(
                f"rank {rank} was awaited for cluster.timeout_minutes={self._timeout_minutes:g} in vain: it hangs "
                f"{self._words[rank].where} (its last sign of life came {seconds:.0f} s before its end)"
                for rank, seconds in frozen.items()
            )
        elif first.code < 0:
            name = signal.Signals(-first.code).name
            hint = " (the kernel does so when memory runs out)" if name == "SIGKILL" else ""
            cause = f"rank {first.rank} was killed by {name}{hint} {self._words[first.rank].where}"
        else:
            print(first.trace, end="", file=sys.stderr)
            cause = f"rank {first.rank} failed {self._words[first.rank].where}: {first.fault or f'exit {first.code}'}"
        others = " and the others were ended" if self._size - len(frozen or [first]) else ""
        remedy = "goes on from the last checkpoint" if self._words[first.rank].trains else "starts again"
        error = TinyllamaError(f"{cause}{others}; the same command {remedy}{self._write_faults()}")
        error.exit_code = first.code if first.code > 0 else 128 - first.code
        return error

    def _write_faults(self) -> str:
        """Keep the ranks' stack traces; where, for the end of a message."""
        told = sorted((end for end in self._ends.values() if end.trace), key=lambda end: end.when)
        if not told or self._faults is None:
            return ""
        try:
            with self._faults.open("a", encoding="utf-8") as file:
                for end in told:
                    print(f"{time.ctime()}: rank {end.rank} {self._words[end.rank].where}\n{end.trace}", file=file)
        except OSError:
            return ""
        return f"; stack traces: {self._faults}"

    @contextmanager
    def _forwarding_signals(self) -> Iterator[None]:
        def forward(number: int, frame: object) -> None:
            self._asked = number
            for process in self._processes:
                if process.is_alive() and process.pid is not None:
                    with suppress(ProcessLookupError):  # it has ended since
                        os.kill(process.pid, number)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, forward) for number in signals.ASKING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _run_rank(
    main: Main, args: tuple, place: dict[str, str], report: Connection, words: Sequence[Word], parent: int
) -> None:
    """The whole life of a started rank. Handlers of atexit are not run in it: multiprocessing leaves without them."""
    os.setpgid(0, 0)  # a terminal's interrupt reaches it once, through the parent
    signals.die_with(parent)
    signals.leave_at_once(quietly=True)
    signals.release()
    os.environ.update(place)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    heartbeat.use(words[int(place["RANK"])], partial(_tell, report))
    try:
        with heartbeat.doing("while starting"):
            main(*args)
    except SystemExit:
        raise
    except BaseException:  # has been told
        sys.exit(1)


def _tell(report: Connection, error: BaseException) -> None:
    """What a rank's supervisor is to know of its first error."""
    if isinstance(error, TinyllamaError):
        report.send((error, "", ""))
    elif not isinstance(error, SystemExit):
        fault = traceback.format_exception_only(error)[-1].strip()
        report.send((None, fault, "".join(traceback.format_exception(error))[-_TRACE_CHARACTERS:]))


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
