"""The processes of a run: starting one rank per GPU from one command, watching them, and what each rank sets up."""

import ctypes
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed

from tinyllama.config.schema import ClusterConfig
from tinyllama.errors import Stopped, TinyllamaError
from tinyllama.world import World, given_ranks

Main = Callable[..., int | None]

_GRACE_SECONDS = 10.0
_PULSE_SECONDS = 0.5
"""How often waiting is interrupted: a signal that comes just before the wait does not end it, and is heeded then."""
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


def run_ranks(main: Main, args: tuple, processes: int) -> int:
    """Run `main(*args)` in every rank of this node and return the exit code.

    Under torchrun or srun this process is one rank already. Otherwise `processes` ranks are started here: one alone in
    this process, several forked from it, so import what they need before. SIGTERM, SIGINT and SIGUSR1 reach them all.
    When one fails the others are ended, and its failure is the one that is told.

    Raises:
        TinyllamaError: what `main` raised, in whichever rank it did first.
    """
    given = _place(os.environ)
    if given is not None or processes == 1:
        with _environment(_rank_environment(0, 1, port=0) if given is None else given):
            return main(*args) or 0
    return _Ranks(main, args, processes).outcome()


def initialize(cluster: ClusterConfig) -> World:
    """Inside a rank: its place, device, CPU threads and process group."""
    world = World.from_environment()
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank)
    torch.set_num_threads(cluster.threads or max(1, len(os.sched_getaffinity(0)) // world.local_size))
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))  # DeepSpeed wants it
    torch.distributed.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        timeout=timedelta(minutes=cluster.timeout_minutes),
        store=torch.distributed.HashStore() if world.size == 1 else None,  # alone it needs no port
        rank=world.rank,
        world_size=world.size,
    )
    return world


def finalize() -> None:
    """Leave the process group, so that another run may follow in this process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def device() -> torch.device:
    """What this rank computes on."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


# ---------------------------------------------------------------- ranks that others started


def _place(environ: Mapping[str, str]) -> dict[str, str] | None:
    """The place that torchrun or srun gave to this process, as environment variables; None without them."""
    if given_ranks(environ) is None:
        return None
    if "RANK" in environ:
        return {}
    # "4(x2),3": four tasks on each of two nodes, three on another
    per_node = environ.get("SLURM_STEP_TASKS_PER_NODE", environ["SLURM_NTASKS"]).split("(")[0].split(",")[0]
    given = {
        "RANK": environ["SLURM_PROCID"],
        "WORLD_SIZE": environ["SLURM_NTASKS"],
        "LOCAL_RANK": environ["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": per_node,
    }
    if "MASTER_ADDR" not in environ:
        nodes = environ.get("SLURM_STEP_NODELIST", environ["SLURM_JOB_NODELIST"])
        listing = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
        given["MASTER_ADDR"] = listing.stdout.split()[0]
    if "MASTER_PORT" not in environ:
        given["MASTER_PORT"] = str(20_000 + int(environ["SLURM_JOB_ID"]) % 10_000)  # the same in every rank
    return given


def _rank_environment(rank: int, size: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# ---------------------------------------------------------------- ranks that we start


@dataclass(frozen=True)
class _Failure:
    """How a rank ended that did not end well."""

    rank: int
    code: int
    """Exit code; below 0 the signal that killed it."""
    when: float = 0.0
    error: TinyllamaError | None = None
    trace: str = ""


class _Ranks:
    """Ranks of one node, from their start to the last one's end."""

    def __init__(self, main: Main, args: tuple, size: int):
        self._main, self._args, self._size = main, args, size
        self.reports: list[Connection] = []
        self.processes: list[BaseProcess] = []

    def _start(self) -> None:
        import torch._dynamo  # noqa: F401  # the first optimizer would, in each rank: two seconds

        context: Any = multiprocessing.get_context("spawn" if torch.cuda.is_initialized() else "fork")
        port = _free_port()
        for rank in range(self._size):
            report, sender = context.Pipe(duplex=False)
            job = (self._main, self._args, _rank_environment(rank, self._size, port), sender)
            process = context.Process(target=_run_rank, args=job, name=f"rank {rank}")
            process.start()
            sender.close()
            self.reports.append(report)
            self.processes.append(process)

    def outcome(self) -> int:
        """Start all, wait for all; the exit code of the first failure, or 0."""
        with self._forwarding_signals():
            with _held_back(_FORWARDED):
                self._start()
            first = self._first_failure()
            if first is not None and first.code != Stopped.exit_code:
                self._end_others()
            for process in self.processes:
                while process.is_alive():
                    process.join(_PULSE_SECONDS)
        if first is None:
            return 0
        if first.error is not None:
            raise first.error
        if first.trace:
            print(f"rank {first.rank} failed:\n{first.trace}", file=sys.stderr, end="")
        elif first.code < 0:
            name = signal.Signals(-first.code).name
            print(f"rank {first.rank} was killed by {name}; the others were ended", file=sys.stderr)
        return first.code if first.code > 0 else 128 - first.code

    def _first_failure(self) -> _Failure | None:
        """Returns as soon as a rank has failed, or all have ended well."""
        running = dict(enumerate(self.processes))
        while running:
            ended = wait([process.sentinel for process in running.values()], timeout=_PULSE_SECONDS)
            done = [rank for rank, process in running.items() if process.sentinel in ended]
            for rank in done:
                running.pop(rank).join()  # the sentinel comes a moment before the exit code
            failures = [self._failure(rank) for rank in done if self.processes[rank].exitcode]
            if failures:  # one that was killed, then the earliest: the others only lost their peer
                return min(failures, key=lambda failure: (failure.code > 0, failure.when))
        return None

    def _failure(self, rank: int) -> _Failure:
        code = self.processes[rank].exitcode
        assert code is not None
        when, error, trace = 0.0, None, ""
        if self.reports[rank].poll():
            with suppress(EOFError):  # it ended without a word
                when, error, trace = self.reports[rank].recv()
        return _Failure(rank, code, when, error, trace)

    def _end_others(self) -> None:
        """First they may end by themselves: they lose their peer, or heed SIGTERM; then they must."""
        for process in self.processes:
            if process.is_alive():
                process.terminate()
        deadline = time.monotonic() + _GRACE_SECONDS
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()

    @contextmanager
    def _forwarding_signals(self) -> Iterator[None]:
        def forward(number: int, frame: object) -> None:
            for process in self.processes:
                if process.is_alive() and process.pid is not None:
                    os.kill(process.pid, number)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, forward) for number in _FORWARDED}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _held_back(numbers: Iterable[signal.Signals]) -> Iterator[None]:
    """Signals that come meanwhile are delivered at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_rank(main: Main, args: tuple, environment: dict[str, str], report: Connection) -> None:
    """The whole life of a started rank. Handlers of atexit are not run in it: multiprocessing leaves without them."""
    os.setpgid(0, 0)  # a terminal's interrupt reaches it once, through the parent
    _die_with_parent()
    for number in _FORWARDED:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    os.environ.update(environment)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        code = main(*args) or 0
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except TinyllamaError as error:
        report.send((time.monotonic(), error, ""))
        code = error.exit_code
    except BaseException as error:
        if isinstance(error, SystemExit) and isinstance(error.code, int | None):
            code = error.code or 0
        else:
            report.send((time.monotonic(), None, traceback.format_exc()))
            code = 1
    sys.exit(code)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
