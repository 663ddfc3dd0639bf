"""Commands in processes that are forked from one that has imported their libraries already: no start-up time."""

import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

IMPORTED = ["tinyllama.train", "tinyllama.training.run", "tinyllama.proof.checks", "torch._dynamo"]
HEAVY = {
    "tinyllama.evaluate": ["tinyllama.evaluation.session", "lm_eval.evaluator", "lm_eval.tasks"],
    "tinyllama.export": ["tinyllama.exporting.folder", "tinyllama.exporting.comparison", "transformers"],
    "tinyllama.generate": ["tinyllama.model.generation"],
}
"""What a command imports besides, by its module; imported in the server when the command is first started."""
ROOT = Path(__file__).parents[1]


class Forkserver:
    """Runs commands of the package as `python -m` does, one process each, for as long as the tests last.

    It is not multiprocessing's own, of which a process has one only: that one serves `prepare`.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def start(
        self, module: str, arguments: Sequence[str], scratch: Path, *, cwd: Path = ROOT,
        environ: Mapping[str, str] = os.environ, new_session: bool = False,
    ) -> "Forked":  # fmt: skip
        """Begin a command; `scratch` is a folder of its own for what it prints."""
        what = {"module": module, "arguments": list(arguments), "scratch": str(scratch), "cwd": str(cwd)}
        return Forked(self, self.ask(what | {"environ": dict(environ), "new_session": new_session}), scratch)

    def ask(self, request: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


class Forked:
    """A command that was begun, with what tests use of subprocess.Popen."""

    def __init__(self, server: Forkserver, pid: int, scratch: Path) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server, self._scratch = server, scratch

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.ask({"ended": self.pid})
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def printed(self) -> str:
        """What it has printed on standard error so far."""
        return (self._scratch / "err").read_text(encoding="utf-8") if (self._scratch / "err").exists() else ""

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """What it printed on standard output and standard error, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it did not end in so many seconds, and was killed.
        """
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise subprocess.TimeoutExpired(str(self.pid), timeout, stderr=(self._scratch / "err").read_bytes())
            time.sleep(0.01)
        out, err = ((self._scratch / name).read_text(encoding="utf-8") for name in ("out", "err"))
        return out, err


def in_child(function: Callable[[], Any]) -> Any:
    """What a function returns in a fork of this process, which keeps nothing of what it changes there."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def main() -> None:
        try:
            sender.send((function(), ""))
        except BaseException:
            sender.send((None, traceback.format_exc()))

    child = context.Process(target=main)
    child.start()
    sender.close()
    result, failure = receiver.recv()
    child.join()
    assert not failure, failure
    return result


def _serve() -> dict[str, Any]:
    """Answer the tests until they end; returns in a child, with what it is to do."""
    for name in IMPORTED:
        import_module(name)
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        if "ended" in request:
            pid, status = os.waitpid(request["ended"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            for name in _imports(request):
                import_module(name)
            answer = os.fork()
            if answer == 0:
                return request
        print(json.dumps(answer), flush=True)
    sys.exit()


def _imports(request: dict[str, Any]) -> list[str]:
    """What a command imports: training too what evaluation does, where it evaluates meanwhile."""
    evaluates = any(text.startswith("evaluation.every_tokens=") for text in request["arguments"])
    heavy = HEAVY.get("tinyllama.evaluate" if evaluates else request["module"], [])
    return [request["module"], *heavy]


def _become(request: dict[str, Any]) -> None:
    """Turn this child into the command."""
    if request["new_session"]:
        os.setsid()
    appending = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for stream, (path, flags) in enumerate(
        [(os.devnull, os.O_RDONLY), *((os.path.join(request["scratch"], name), appending) for name in ("out", "err"))]
    ):
        file = os.open(path, flags)
        os.dup2(file, stream)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environ"])
    sys.argv, sys.path[0] = [request["module"], *request["arguments"]], request["cwd"]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # and not this folder, as Python has it for a script
    with suppress(KeyboardInterrupt):  # of the tests
        task = _serve()
    _become(task)
