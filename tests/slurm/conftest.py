"""The cluster of all tests here, and the small family's data."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Result
from tests.end_to_end.conftest import data, settings, small, store_template  # noqa: F401
from tests.forked import Forked
from tests.slurm.cluster import Missing, Slurm


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A real SLURM; where there can be none the tests are skipped, unless TINYLLAMA_REQUIRE_SLURM is set.

    Modules that use it carry `pytest.mark.xdist_group("slurm")`, so that one worker has the only cluster.
    """
    base = tmp_path_factory.getbasetemp()
    cluster = Slurm(shared=base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)
    try:
        cluster.start()
    except Missing as reason:
        if os.environ.get("TINYLLAMA_REQUIRE_SLURM"):
            raise
        pytest.skip(f"no SLURM here: {reason}")
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def on_login(
    slurm: Slurm, begin: Callable[..., Forked], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Forked]:
    """on_login("train", ...) begins a command whose imports are paid and which finds the cluster's sbatch and squeue.

    `path` is a folder whose commands come before those.
    """
    commands = slurm.commands(tmp_path_factory.mktemp("commands"))

    def begin_there(name: str, *arguments: str, path: Path | None = None) -> Forked:
        folders = [*([] if path is None else [str(path)]), str(commands), os.environ["PATH"]]
        return begin(name, *arguments, environ={**slurm.env, "PATH": ":".join(folders)})

    return begin_there


@pytest.fixture(scope="session")
def login(on_login: Callable[..., Forked]) -> Callable[..., Result]:
    """login("train", ...) does the same, to its end."""

    def run_there(name: str, *arguments: str, path: Path | None = None) -> Result:
        command = on_login(name, *arguments, path=path)
        out, err = command.communicate()
        assert command.returncode is not None
        return Result(command.returncode, out, err)

    return run_there
