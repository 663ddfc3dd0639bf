"""Commands in processes that are forked from one that has imported their libraries already: no start-up time."""

import multiprocessing
import os
import subprocess
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyllama.drilling import fork_server
from tinyllama.drilling.fork_server import ForkServer

TRAINING = ["tinyllama.train", "tinyllama.training.run", "tinyllama.proof.checks", "torch._dynamo", "tests.composed"]
HEAVY = {
    "tinyllama.evaluate": ["tinyllama.evaluation.session", "lm_eval.evaluator", "lm_eval.tasks"],
    "tinyllama.export": ["tinyllama.exporting.folder", "tinyllama.exporting.comparison", "transformers"],
    "tinyllama.generate": ["tinyllama.model.generation"],
}
"""What a command imports besides, by its module; a server that has TRAINING imports it when the command is started."""
LIGHT = ["numpy", "tinyllama.config.app"]
"""For commands that are watched for what they import; none of it is a library that they must not load."""
ROOT = Path(__file__).parents[1]


class Forkserver:
    """Runs commands of the package as `python -m` does, one process each, for as long as the tests last.

    `imported` are modules that all of them find loaded.
    """

    def __init__(self, imported: Sequence[str] = TRAINING) -> None:
        self.server = ForkServer(imported, {**os.environ, "PYTHONPATH": str(ROOT)})
        self._is_light = imported is LIGHT

    def start(
        self, module: str, arguments: Sequence[str], scratch: Path, *, cwd: Path = ROOT,
        environ: Mapping[str, str] = os.environ,
    ) -> "Forked":  # fmt: skip
        """Begin a command in a session of its own; `scratch` is a folder for what it prints."""
        process = self.server.start(
            module, arguments, scratch / "out", scratch / "err", cwd=cwd, environ=environ,
            imports=[] if self._is_light else _imports(module, arguments),
        )  # fmt: skip
        return Forked(process, scratch)


class Forked:
    """A command that was begun, with what tests use of subprocess.Popen."""

    def __init__(self, process: fork_server.Forked, scratch: Path) -> None:
        self.pid, self.poll, self.send_signal, self.kill = (
            process.pid, process.poll, process.send_signal, process.kill,
        )  # fmt: skip
        self._process, self._scratch = process, scratch

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    def printed(self) -> str:
        """What it has printed on standard error so far."""
        return (self._scratch / "err").read_text(encoding="utf-8")

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """What it printed on standard output and standard error, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it did not end in so many seconds, and was killed.
        """
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise subprocess.TimeoutExpired(error.cmd, timeout, stderr=(self._scratch / "err").read_bytes()) from error
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


def _imports(module: str, arguments: Sequence[str]) -> list[str]:
    """The modules that a command imports; training needs those of evaluation where it evaluates meanwhile."""
    evaluates = any(text.startswith("evaluation.every_tokens=") for text in arguments)
    return [module, *HEAVY.get("tinyllama.evaluate" if evaluates else module, [])]
