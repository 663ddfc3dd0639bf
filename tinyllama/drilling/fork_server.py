"""Programs in processes that are forked from one whose imports are paid: no start-up time, real signals and exit codes.

Importing the training stack takes seconds and a drill starts it for each kill. The server imports it once. Each request
forks one process, with its own session, working directory, environment and output files.

Light: the drill's own process never imports what the server does. It is not multiprocessing's own fork server, of which
a process has one only and which serves `prepare`.
"""

import gc
import json
import math
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from tinyllama.errors import TinyllamaError

_MODULE = "tinyllama.drilling.fork_server"

Program = str | Path
"""A module, which runs as `python -m` runs it, or the path of a script."""


class ForkServer:
    """A process with these modules imported. Its processes end with it, and it ends with the one that made it."""

    def __init__(self, imports: Sequence[str] = (), environ: Mapping[str, str] = os.environ) -> None:
        # Its own session: Ctrl-C reaches whoever asked for the processes, and not the server.
        self._process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, *imports],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(environ), start_new_session=True,
        )  # fmt: skip
        self._asking = threading.Lock()
        self._ready = False

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server, and with it the sessions of all its processes."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def wait_until_ready(self) -> None:
        """Returns when the imports are done.

        Raises:
            TinyllamaError: the server has ended; standard error has the reason.
        """
        with self._asking:
            if not self._ready:
                self._answer()
                self._ready = True

    def start(
        self, program: Program, arguments: Sequence[str], output: Path, errors: Path | None = None, *,
        cwd: Path | None = None, environ: Mapping[str, str] = os.environ, imports: Sequence[str] = (),
    ) -> "Forked":  # fmt: skip
        """Start a program in a process that leads a session of its own.

        Args:
            output: the file for standard output, emptied first; `errors` the one for standard error, the same without.
            imports: further modules that the server imports before it forks.
        """
        self.wait_until_ready()
        files = [str(path.absolute()) for path in (output, errors or output)]
        for path in files:
            Path(path).write_bytes(b"")
        request = {
            "program": str(program), "is_script": isinstance(program, Path), "arguments": list(arguments),
            "files": files, "cwd": str(cwd or Path.cwd()), "environ": dict(environ), "imports": list(imports),
        }  # fmt: skip
        return Forked(self, self.ask(request))

    def ask(self, request: Mapping[str, Any]) -> Any:
        """Send one request and return its answer."""
        assert self._process.stdin is not None
        with self._asking:
            try:
                print(json.dumps(request), file=self._process.stdin, flush=True)
            except BrokenPipeError as error:
                raise TinyllamaError("the process that starts others has ended") from error
            return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise TinyllamaError("the process that starts others has ended")
        return json.loads(line)


class Forked:
    """A process of a server, with what subprocess.Popen offers of it."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        """Exit code; below 0 the signal that ended it."""
        self._server = server
        self._handle = os.pidfd_open(pid)  # of this process and no later one: the server reaps it when it is asked

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self._ended_within(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not ended in `timeout` seconds.
        """
        code = self._ended_within(math.inf if timeout is None else timeout)
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """To this process alone, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, to this process alone."""
        self.send_signal(signal.SIGKILL)

    def _ended_within(self, seconds: float) -> int | None:
        if self.returncode is None:
            waiting = select.poll()
            waiting.register(self._handle, select.POLLIN)
            if waiting.poll(None if seconds == math.inf else 1000 * max(0.0, seconds)):
                self.returncode = int(self._server.ask({"ended": self.pid}))
                os.close(self._handle)
        return self.returncode


def members(session: int) -> Iterator[int]:
    """The living processes of a session; ranks and loaders have groups of their own, but stay in it."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
                state, _, _, of = stat.rpartition(")")[2].split()[:4]
                if int(of) == session and state not in "ZX":
                    yield int(entry.name)


def end_session(session: int) -> None:
    """SIGKILL all processes of a session, as a machine that goes down; returns when none is left."""
    while alive := list(members(session)):
        for member in alive:
            with suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        time.sleep(0.005)


# ---------------------------------------------------------------- in the server


def _serve() -> dict[str, Any]:
    """Answer requests until they end; returns in each process that is forked, with its request."""
    _import(sys.argv[1:])
    print(json.dumps("ready"), flush=True)
    running: set[int] = set()
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        if "ended" in request:
            pid, status = os.waitpid(request["ended"], 0)
            running.discard(pid)
            print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)
            continue
        _import(request["imports"])
        child = _fork()
        if child == 0:
            return request
        running.add(child)
        print(json.dumps(child), flush=True)
    for session in running:
        end_session(session)
    sys.exit()


def _import(modules: Sequence[str]) -> None:
    known = len(sys.modules)
    for name in modules:
        import_module(name)
    if len(sys.modules) > known:
        gc.collect()
        gc.freeze()  # a collection in a forked process would copy every page of what was imported


def _fork() -> int:
    """The process id, or 0 in the new process, which leads its session by the time this returns in the server."""
    led, leading = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.close(led)
        os.close(leading)
    else:
        os.close(leading)
        os.read(led, 1)  # returns when the new process has closed its end
        os.close(led)
    return child


def _become(request: Mapping[str, Any]) -> None:
    """Turn this process into the program."""
    appending = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    streams = [(os.devnull, os.O_RDONLY), *((path, appending) for path in request["files"])]
    for stream, (path, flags) in enumerate(streams):
        file = os.open(path, flags)
        os.dup2(file, stream)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environ"])
    program = request["program"]
    sys.argv = [program, *request["arguments"]]
    if request["is_script"]:
        sys.path[0] = str(Path(program).parent)
        runpy.run_path(program, run_name="__main__")
    else:
        sys.path[0] = request["cwd"]
        sys.modules.pop(program, None)  # it runs as __main__; whoever imports it gets a module of its own, as always
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _become(_serve())
