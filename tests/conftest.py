"""Fixtures for all tests: composing configs, and running commands inside this process or in one of their own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from tinyllama.config.app import compose_path, prepare_hydra
from tinyllama.config.location import conf_folder
from tinyllama.config.schema import RunConfig

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def hydra_knows_our_schema_and_launchers() -> None:
    prepare_hydra()


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
        try:
            import_module(f"tinyllama.{name}").main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return run_command


@pytest.fixture(scope="session")
def shell() -> Callable[..., Result]:
    """shell("train", "stage=basic") runs a command as a person does, in a process of its own."""

    def run_command(name: str, *arguments: str, cwd: Path = ROOT, timeout: float = 300) -> Result:
        return run_python("-m", f"tinyllama.{name}", *arguments, cwd=cwd, timeout=timeout)

    return run_command


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
    """LlamaForCausalLM; torchvision's operators are declared where its wheel does not fit torch."""
    import torch

    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM
