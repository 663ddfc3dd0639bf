"""Nodes of a tree at work on this machine, each in a process of its own, parents before children."""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from tinyllama import signals
from tinyllama.checkpoint.layout import RunFolder, Status
from tinyllama.config.checks import processes_per_node
from tinyllama.errors import Stopped, TinyllamaError
from tinyllama.planning.tree import Node
from tinyllama.reporting.family import End, Outcome, status_of
from tinyllama.world import visible_gpus

_PULSE_SECONDS = 0.5
"""How often waiting is interrupted: a signal that comes just before the wait does not end it, and is heeded then."""
_TRACE_CHARACTERS = 20_000
"""More would not fit into a pipe that is read when the process has ended."""
_DONE = Outcome(End.done)


@dataclass(frozen=True)
class Share:
    """What a node gets of the machine."""

    gpus: tuple[str, ...]
    """As CUDA_VISIBLE_DEVICES calls them; none on a machine without."""
    threads: int
    """CPU threads, for all of its ranks."""
    alone: bool
    """Whether the terminal is its own. If not, it prints into its log, and the crew repeats that on the terminal."""


Work = Callable[[Node, Share], None]


def gpu_names() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES calls them: numbers, UUIDs or MIG's names."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return tuple(map(str, range(visible_gpus())))
    return tuple(name for text in chosen.split(",") if (name := text.strip()) not in ("", "-1"))


def cores() -> int:
    return len(os.sched_getaffinity(0))


@dataclass
class _Member:
    """A node at work."""

    node: Node
    share: Share
    process: BaseProcess
    report: Connection
    """Its last word, if something went wrong."""
    output: int | None
    """Pipe with what it prints, unless it has the terminal to itself."""

    @property
    def log(self) -> Path:
        return RunFolder.of(self.node.config.paths.runs, self.node.plan).log

    def repeat_output(self) -> None:
        """Copy what it has printed to its log and to the terminal. Neither may be in the way of training."""
        while self.output is not None:
            try:
                said = os.read(self.output, 1 << 16)
            except BlockingIOError:
                return
            if not said:
                self.close_output()
            self.note(said)
            with suppress(OSError):
                sys.stderr.buffer.write(said)
                sys.stderr.buffer.flush()

    def note(self, text: bytes) -> None:
        with suppress(OSError):
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("ab") as file:
                file.write(text)

    def close_output(self) -> None:
        if self.output is not None:
            os.close(self.output)
            self.output = None

    def outcome(self) -> Outcome:
        """How it ended, now that it has."""
        self.process.join()  # it has ended, but its exit code has not been fetched
        self.repeat_output()
        self.close_output()  # a recorder that outlives its run may still hold the other end
        code = self.process.exitcode
        assert code is not None
        if code == 0:
            return _DONE
        if code == Stopped.exit_code:
            return Outcome(End.stopped, exit_code=code)
        why, said = self._last_words(code)
        if self.share.alone or not said:
            self.note(f"{time.ctime()}: {said or why}\n".encode())
        return Outcome(End.failed, why, code if code > 0 else 128 - code, self.log)

    def _last_words(self, code: int) -> tuple[str, str]:
        """Why it failed in one line, and all that it said of it."""
        with suppress(EOFError):
            if self.report.poll():
                return self.report.recv()
        if code > 0:
            return f"it left with exit code {code}", ""
        name = signal.Signals(-code).name
        return f"it was killed by {name}" + " (the kernel does so when memory runs out)" * (name == "SIGKILL"), ""


@dataclass
class Crew:
    """Does `work` for each node that is not done. A node that fails holds up its descendants and nobody else.

    A node begins when its parent is done, it is its turn, and there is room: GPUs of its own for its ranks, and fewer
    than `jobs` at work. Those that are ready wait in line and none overtakes, so that a large one gets its turn.
    """

    nodes: Sequence[Node]
    work: Work
    jobs: int
    gpus: Sequence[str] = ()
    stopping: bool = False
    """Whether no more are started: somebody asked to stop."""
    _outcomes: dict[str, Outcome] = field(default_factory=dict)
    _members: list[_Member] = field(default_factory=list)
    _line: list[Node] = field(default_factory=list)

    def run(self) -> dict[str, Outcome]:
        """What became of each node, by digest."""
        finished = [node for node in self.nodes if status_of(node) is Status.done or node.overrides is None]
        self._outcomes = {node.plan.digest: _DONE for node in finished}
        while self._start_next() or self._members:
            self._wait()
        for node in self.nodes:  # parents first
            if node.plan.digest not in self._outcomes:
                self._outcomes[node.plan.digest] = Outcome(End.not_started, self._held_up_by(node))
        return self._outcomes

    def heed_signals(self) -> None:
        """From now on what asks this process to stop asks the nodes at work, and they decide how."""

        def forward(number: int, frame: FrameType | None) -> None:
            self.stopping = True
            for member in self._members:
                if member.process.is_alive() and member.process.pid is not None:
                    os.kill(member.process.pid, number)  # a second time, if a terminal's interrupt has reached it

        for number in signals.ASKING:
            signal.signal(number, forward)

    # ------------------------------------------------------------ starting

    def _start_next(self) -> int:
        """Start those next in line, as many as there is room for; how many."""
        if self.stopping:
            return 0
        self._line += [node for node in self.nodes if self._becomes_ready(node)]
        free = [name for name in self.gpus if not any(name in member.share.gpus for member in self._members)]
        starting: list[tuple[Node, tuple[str, ...]]] = []
        while self._line and len(self._members) + len(starting) < self.jobs:
            wanted = gpus_wanted(self._line[0], self.gpus)
            if wanted > len(free):
                break
            starting.append((self._line.pop(0), tuple(free[:wanted])))
            free = free[wanted:]
        threads = max(1, cores() // max(1, len(self._members) + len(starting)))
        for node, gpus in starting:
            with signals.held_back():
                if self.stopping:
                    break
                member = self._start(node, Share(gpus, threads, alone=self.jobs == 1))
                self._members.append(member)
                if self.stopping:  # another thread got the signal, and held nothing back
                    member.process.terminate()
        return len(starting)

    def _becomes_ready(self, node: Node) -> bool:
        known = any(other is node for other in (*self._line, *(member.node for member in self._members)))
        if known or node.plan.digest in self._outcomes:
            return False
        return node.plan.parent is None or self._outcomes.get(node.plan.parent.digest) == _DONE

    def _start(self, node: Node, share: Share) -> _Member:
        report, sender = multiprocessing.Pipe(duplex=False)
        output, printed = (None, None) if share.alone else os.pipe()
        args = (self.work, node, share, sender, printed, os.getpid())
        process = multiprocessing.get_context("fork").Process(target=_do, args=args, name=node.plan.name)
        process.start()
        sender.close()
        if output is not None and printed is not None:
            os.close(printed)
            os.set_blocking(output, False)
        return _Member(node, share, process, report, output)

    # ------------------------------------------------------------ ending

    def _wait(self) -> None:
        """For somebody to print or to end, but not long."""
        ends = [member.process.sentinel for member in self._members]
        happened = wait([*ends, *(each.output for each in self._members if each.output is not None)], _PULSE_SECONDS)
        for member in list(self._members):
            member.repeat_output()
            if member.process.sentinel in happened:
                self._members.remove(member)
                self._outcomes[member.node.plan.digest] = outcome = member.outcome()
                self.stopping |= outcome.end is End.stopped

    def _held_up_by(self, node: Node) -> str:
        """The ancestor because of which it was not started; nothing where that was asked for."""
        if node.plan.parent is None or self._outcomes[node.plan.parent.digest] == _DONE:
            assert self.stopping
            return ""
        parent = self._outcomes[node.plan.parent.digest]
        return parent.why if parent.end is End.not_started else f"{node.plan.parent.name} {parent.end.value}"


def gpus_wanted(node: Node, gpus: Sequence[str]) -> int:
    """One for each rank, on a machine that has any."""
    return processes_per_node(node.config.cluster) if gpus else 0


def _do(work: Work, node: Node, share: Share, report: Connection, printed: int | None, parent: int) -> None:
    """The whole life of a node's process."""
    signals.die_with(parent)
    signals.leave_at_once(quietly=True)
    signals.release()
    if printed is not None:
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        os.close(printed)
    if share.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(share.gpus)
    try:
        work(node, share)
    except TinyllamaError as error:
        text = f"error: {error}"
        report.send((_first_sentence(str(error)), text))
        print(f"{node.plan.name}: {text}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        trace = traceback.format_exc()
        why, _, _ = traceback.format_exception_only(error)[-1].partition("\n")
        report.send((why, trace[-_TRACE_CHARACTERS:]))
        print(trace, end="", file=sys.stderr)
        sys.exit(1)


def _first_sentence(text: str) -> str:
    """What is wrong, without the remedy."""
    return text.partition("\n")[0].partition("; ")[0].rstrip(":")
