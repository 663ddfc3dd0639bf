"""Fixtures for all tests: composing configs, and running commands inside this process or in one of their own."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import settings

from tests import scheduling
from tests.forked import LIGHT, Forked, Forkserver
from tests.object_store import ObjectStore, served
from tests.shared import altered
from tinyllama import signals
from tinyllama.config.app import compose_path, prepare_hydra
from tinyllama.config.location import conf_folder
from tinyllama.config.schema import RunConfig

ROOT = Path(__file__).parents[1]

WORKER_GIB = 1.5
"""Each rank that a test forks copies the page tables of its worker: a worker that keeps growing slows all tests."""

settings.register_profile("project", deadline=None)  # no test asserts on seconds
settings.load_profile("project")


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return scheduling.GroupScheduling(config, log) if config.getvalue("dist") == "loadgroup" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    scheduling.arrange(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    return scheduling.number_of_workers()


@pytest.fixture(scope="session", autouse=True)
def hydra_knows_our_schema_and_launchers() -> None:
    prepare_hydra()


@pytest.fixture(scope="session", autouse=True)
def shared_folders_are_only_read(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test alters what all workers share (shared.py)."""
    yield
    assert altered(tmp_path_factory) == []


@pytest.fixture(scope="session", autouse=True)
def this_worker_stays_small() -> Iterator[None]:
    """Tests that train in this process or keep models make it grow; they belong into ranks or a child (forked.py)."""
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert peak < WORKER_GIB, f"the tests of this worker have taken {peak:.1f} GiB"


@pytest.fixture(autouse=True)
def hearing() -> Iterator[None]:
    """Commands that end in this process leave it deaf to signals, which all that it starts later would inherit."""
    with _handlers_kept():
        yield


@contextmanager
def _handlers_kept() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in signals.ASKING}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.fixture
def compose() -> Iterator[Callable[..., tuple[RunConfig, ...]]]:
    """compose("stage=continual", ...) -> the configs of the path, the root first."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield lambda *overrides: compose_path(overrides)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """run("train", "stage=basic") runs a command inside this process; for what ends before ranks are started."""

    def run_command(name: str, *arguments: str) -> Result:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", [f"tinyllama/{name}.py", *arguments])
        code = 0
        with _handlers_kept():
            try:
                import_module(f"tinyllama.{name}").main()
            except SystemExit as end:
                code = int(end.code or 0)
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return run_command


@pytest.fixture(scope="session")
def forkserver() -> Forkserver:
    """The process from which this worker's commands are forked."""
    return Forkserver()


@pytest.fixture(scope="session")
def begin(forkserver: Forkserver, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Forked]:
    """begin("train", "stage=basic") starts a command in a process of its own, its imports paid (forked.py)."""

    def begin_command(name: str, *arguments: str, **how: Any) -> Forked:
        return forkserver.start(f"tinyllama.{name}", arguments, tmp_path_factory.mktemp("begun"), **how)

    return begin_command


@pytest.fixture(scope="session")
def shell(begin: Callable[..., Forked]) -> Callable[..., Result]:
    """shell("train", "stage=basic") runs a command to its end, its imports paid."""

    def run_command(name: str, *arguments: str, cwd: Path = ROOT, timeout: float = 300) -> Result:
        command = begin(name, *arguments, cwd=cwd)
        out, err = command.communicate(timeout)
        assert command.returncode is not None
        return Result(command.returncode, out, err)

    return run_command


@pytest.fixture(scope="session")
def loaded_by(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """loaded_by("import tinyllama.plan", "torch", "mlflow") -> those of the libraries that the statement loads.

    Each statement runs in a process of its own that has loaded none of them.
    """
    server = Forkserver(LIGHT)

    def look(statement: str, *libraries: str, arguments: Sequence[str] = (), cwd: Path = ROOT) -> list[str]:
        scratch = tmp_path_factory.mktemp("loaded")
        child = server.start("tests.loaded", [",".join(libraries), statement, *arguments], scratch, cwd=cwd)
        out, err = child.communicate()
        assert child.returncode == 0, err
        found: list[str] = json.loads(out.splitlines()[-1])
        return found

    return look


@pytest.fixture(scope="session")
def typed() -> Callable[..., Result]:
    """typed("train", "stage=basic") runs a command as a person does, Python's start and all."""

    def run_command(name: str, *arguments: str, cwd: Path = ROOT, timeout: float = 300) -> Result:
        return run_python("-m", f"tinyllama.{name}", *arguments, cwd=cwd, timeout=timeout)

    return run_command


@pytest.fixture
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A real S3 server with an empty bucket; this process and those that it starts find it."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # they keep to the server that they knew first
    with served() as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        yield store


def run_python(*arguments: str, cwd: Path = ROOT, timeout: float = 300, env: dict[str, str] | None = None) -> Result:
    """Python with the checkout on its path."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    command: Sequence[str] = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def hugging_face() -> type:
    """LlamaForCausalLM."""
    from tinyllama.model.transformers import library

    return library().LlamaForCausalLM
