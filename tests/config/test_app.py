"""Commands as programs: what they load, what they say of themselves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ["torch", "deepspeed", "mlflow", "streaming", "transformers"]
REPORT = """
import atexit, sys
from tinyllama.{command} import main
atexit.register(lambda: print("LOADED", [name for name in {heavy} if name in sys.modules], file=sys.stderr))
main()
"""


def loaded_by(command: str, *arguments: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    """Run a command and have it tell which of the heavy libraries it has loaded."""
    return subprocess.run(
        [sys.executable, "-c", REPORT.format(command=command, heavy=HEAVY), *arguments],
        cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "command, arguments",
    [
        ("train", ["--cfg", "job"]),
        ("train", ["--help"]),
        ("train", ["stage=continual"]),
        ("train", ["-m", "stage=basic,continual"]),
        ("plan", ["+variant=chinese", "stage=basic,continual", "format=json"]),
        ("prepare", ["--help"]),
        ("sample", ["--help"]),
    ],
)
def test_what_needs_no_torch_loads_none_of_the_heavy_libraries(command, arguments, tmp_path):
    result = loaded_by(command, *arguments, cwd=tmp_path)
    assert "LOADED []" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_names_the_groups_and_their_options(run):
    result = run("train", "--help")
    assert result.code == 0
    for word in ("data_mix: chinese, math_code, slimpajama", "stage: basic, continual, cooldown", "scale: demo"):
        assert word in result.out


def test_an_interpolation_on_the_command_line_reaches_the_ancestors_too(run, monkeypatch):
    monkeypatch.setenv("FEW", "1000")
    result = run("train", "stage=continual", "++stages.basic.tokens=${oc.env:FEW}")
    assert result.code == 2
    assert "stage.tokens=1000 is less than one batch" in result.err


def test_a_setting_of_an_ancestor_is_said_by_its_stage(compose):
    basic, continual = compose("stage=continual", "stage.tokens=30B", "++stages.basic.tokens=10B")
    assert (basic.stage.tokens, continual.stage.tokens) == (10_000_000_000, 30_000_000_000)


def test_a_setting_of_the_stage_is_not_one_of_its_ancestors(compose):
    basic, continual = compose("stage=continual", "stage.tokens=30B")
    assert (basic.stage.tokens, continual.stage.tokens) == (1_500_000_000_000, 30_000_000_000)


def test_a_stage_of_ones_own_takes_its_place_in_the_path(compose):
    path = compose("stage=cooldown", "stage.name=anneal", "stage.parent=basic")
    assert [config.stage.name for config in path] == ["basic", "anneal"]


@pytest.mark.parametrize("command", ["verify", "prepare", "sample"])
def test_a_command_that_sees_one_thing_at_a_time_refuses_a_sweep(run, command):
    result = run(command, "-m", "stage=basic,continual")
    assert result.code == 2
    assert "-m is for train and plan" in result.err
