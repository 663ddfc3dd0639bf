"""A forked process is one of its own: session, environment, working directory, output, signals and exit code."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.conftest import run_python
from tinyllama.drilling.fork_server import Forked, ForkServer, end_session, members
from tinyllama.errors import TinyllamaError

TELL = "import json, os, sys; print(json.dumps([os.getpid(), os.getsid(0), os.getcwd(), sys.argv, dict(os.environ)]))\n"
CHILD = "import os, time\nif os.fork() == 0:\n    os.setpgid(0, 0)\nprint('up', flush=True)\ntime.sleep(100)\n"


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


@pytest.fixture
def start(server: ForkServer, tmp_path: Path) -> Callable[..., Forked]:
    """start("print(1)") runs a script; its output is in tmp_path / "out"."""

    numbers = count()

    def start(script: str, *arguments: str, of: ForkServer = server, **how: object) -> Forked:
        path = tmp_path / f"script-{next(numbers)}.py"  # the one before may not have been read yet
        path.write_text(script)
        return of.start(path, arguments, tmp_path / "out", **how)  # type: ignore[arg-type]

    return start


def until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_script_has_its_arguments_folder_environment_and_session(start, tmp_path):
    (tmp_path / "here").mkdir()
    process = start(TELL, "a", "b c", cwd=tmp_path / "here", environ={"ONLY": "this"})
    assert process.wait(60) == 0
    pid, session, folder, arguments, environ = json.loads((tmp_path / "out").read_text())
    assert pid == session == process.pid != os.getpid()
    assert (folder, arguments) == (str(tmp_path / "here"), [str(tmp_path / "script-0.py"), "a", "b c"])
    assert environ["ONLY"] == "this" and "PATH" not in environ


def test_a_module_runs_as_python_runs_it(server, tmp_path):
    (tmp_path / "greeting.py").write_text("import sys; print(__name__, sys.argv[1], sys.modules['__main__'].__file__)")
    for _ in range(2):
        process = server.start("greeting", ["hello"], tmp_path / "out", cwd=tmp_path)
        assert process.wait(60) == 0
        assert (tmp_path / "out").read_text().split() == ["__main__", "hello", str(tmp_path / "greeting.py")]


@pytest.mark.parametrize(
    "script, code", [("", 0), ("raise SystemExit(7)", 7), ("1 / 0", 1), ("import os; os.abort()", -signal.SIGABRT)]
)
def test_the_exit_code_is_the_programs(start, script, code):
    assert start(script).wait(60) == code


def test_output_and_errors_have_a_file_each(start, tmp_path):
    process = start("import sys; print('out'); sys.exit('err')", errors=tmp_path / "err")
    assert process.wait(60) == 1
    assert [(tmp_path / name).read_text() for name in ("out", "err")] == ["out\n", "err\n"]


def test_a_signal_reaches_the_process_and_only_it(start, server, tmp_path):
    process, other = start("import time; time.sleep(100)"), start("input()")
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == process.poll() == -signal.SIGUSR1
    process.kill()  # it has ended: nothing happens
    assert other.wait(60) == 1  # standard input is empty


def test_a_session_is_ended_with_all_its_groups(start, tmp_path):
    process = start(CHILD)
    until(lambda: (tmp_path / "out").read_text().count("up") == 2)
    assert len(list(members(process.pid))) == 2
    end_session(process.pid)
    assert list(members(process.pid)) == []
    assert process.wait(60) == -signal.SIGKILL


def test_processes_end_with_their_server(start, tmp_path):
    with ForkServer() as server:
        process = start(CHILD, of=server)
        until(lambda: (tmp_path / "out").read_text().count("up") == 2)
    assert list(members(process.pid)) == []


def test_a_server_that_cannot_import_says_so(capfd):
    with ForkServer(["no_such_module"]) as server, pytest.raises(TinyllamaError, match="has ended"):
        server.wait_until_ready()
    assert "no_such_module" in capfd.readouterr().err


def test_imports_are_paid_before_the_fork(start, tmp_path):
    with ForkServer(["wave"]) as server:
        assert start("import sys; print('wave' in sys.modules)", of=server).wait(60) == 0
        assert (tmp_path / "out").read_text() == "True\n"


def test_the_drill_itself_starts_without_torch():
    done = run_python("-c", "import tinyllama.drill, tinyllama.drilling.drill, sys; print('torch' in sys.modules)")
    assert (done.code, done.out) == (0, "False\n"), done.err
