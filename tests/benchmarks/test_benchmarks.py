"""Each benchmark runs, as small as it goes, and prints one JSON document with the figures that it is for. Whether they
are good is for people: nobody asserts on seconds here.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.gpu import Part, dry_parts, gpu_parts, run
from tests.forked import Forkserver
from tinyllama.engine.compilation import CACHE
from tinyllama.training.breakdown import OTHER, PARTS

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("benchmarks")]  # one server imports what they need

ROOT = Path(__file__).parents[2]
Benchmark = Callable[..., dict]
LIBRARIES = ("contestants", "measuring")
"""Modules that are no commands."""


@pytest.fixture(scope="module")
def server() -> Forkserver:
    return Forkserver()


@pytest.fixture(scope="module")
def benchmark(server: Forkserver, tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """benchmark("loader", "--samples", "80") -> its JSON; the imports are paid."""

    def measure(name: str, *arguments: str) -> dict:
        begun = server.start(f"benchmarks.{name}", [*arguments, "--json"], tmp_path_factory.mktemp(name))
        out, err = begun.communicate()
        assert begun.returncode == 0, err
        (line,) = out.splitlines()
        return json.loads(line)

    return measure


def positive(*values: float) -> bool:
    return all(value > 0 for value in values)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py")))
def test_each_command_tells_its_options(name, server, tmp_path):
    begun = server.start(f"benchmarks.{name}", ["--help"], tmp_path)
    out, err = begun.communicate()
    assert begun.returncode == 0, err
    assert out.startswith("usage: ") == (name not in LIBRARIES)


def test_checkpoint(benchmark):
    found = benchmark("checkpoint", "--turns", "1", "--steps", "1")
    assert found["bytes_per_parameter"] == pytest.approx(12, rel=0.01)
    assert positive(found["stands_still_behind_seconds"], found["behind_over_in_line"], found["rate_over_copy"])


@pytest.mark.soak
def test_engine_on_two_ranks(benchmark):
    found = benchmark("engine", "--preset", "tiny", "--ranks", "2", "--turns", "1", "--steps", "1")["ranks"]["2"]
    assert list(found) == ["bare", "zero 1", "zero 2", "zero 3"]
    assert found["bare"]["over_bare"] == 1
    for each in found.values():  # the work is the same
        assert each["first_loss"] == pytest.approx(found["bare"]["first_loss"], abs=1e-5)
        assert positive(each["tokens_per_second"], each["over_bare"])


@pytest.mark.soak
def test_evaluate(benchmark):
    sizes = ("--layers", "1", "--hidden", "64", "--questions", "4", "--turns", "1")
    found = benchmark("evaluate", *sizes)
    assert found["same"] is True
    assert positive(found["ratio_asking"], found["ratio_in_all"])


@pytest.mark.soak
def test_export(benchmark):
    found = benchmark("export", "--model", "nano")
    assert found["max_logit_difference"] < 1e-5
    assert 0 < found["anonymous_gib"] < found["limit_gib"]


def test_loader(benchmark):
    found = benchmark("loader", "--samples", "400", "--starts", "1e6")
    assert list(found["reading"]) == [
        "memmap",
        *(f"{who}, {n} workers" for who in ("loader", "stock") for n in range(3)),
    ]
    assert positive(*found["reading"].values())
    assert all(0 <= each["waiting"] < each["step"] for each in found["waiting"].values())
    assert [each["samples"] for each in found["start_up"]] == [10**6]


@pytest.mark.soak
def test_prepare(benchmark):
    found = benchmark("prepare", "--pieces", "1000", "--megabytes", "0.2", "--texts", "English")["English"]
    tokens = {method: each["tokens"] for method, each in found.items()}
    assert {"sentencepiece, ours", "a document at a time"} <= tokens.keys()
    assert len({count for method, count in tokens.items() if method != "datatrove"}) == 1
    assert positive(*(each["cpu_seconds"] for each in found.values()))


def test_report(benchmark):
    found = benchmark("report", "--steps", "20", "--turns", "1")
    assert (found["runs"], found["steps"]) == (7, 20)
    assert positive(found["seconds"], found["page_mb"])


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str]:
    """What the command for GPUs writes on this machine, its parts being train_step, model_parts and training_run."""
    out = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, "benchmarks/gpu.py", "--out", str(out), "--dry", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == json.loads((out / "gpu.json").read_text())
    return json.loads(done.stdout), (out / "gpu.md").read_text()


@pytest.mark.soak
def test_all_contestants_train_the_same_model_on_the_same_tokens(dry):
    found = dry[0]["eager, micro-batch 2"]
    assert {"zero", "bare", "transformers"} <= found["contestants"].keys()
    for name, each in found["contestants"].items():
        assert each["first_loss"] == pytest.approx(found["contestants"]["bare"]["first_loss"], abs=1e-5), name
        assert positive(each["tokens_per_second"], each["first_step_seconds"])
    assert positive(found["ratios"]["zero/bare"], found["ratios"]["zero/transformers"])
    assert {"forward", "backward", "optimizer"} <= {part["name"] for part in found["zero_parts"]["parts"]}


@pytest.mark.soak
def test_a_compiled_engine_takes_part_when_it_is_named(benchmark, dry, monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE, str(tmp_path))
    small = ["--preset", "tiny", "--turns", "1", "--steps", "1"]
    found = benchmark("train_step", *small, "--contestants", "zero,compiled")
    zero, compiled = (found["contestants"][name] for name in ("zero", "compiled"))
    assert compiled["first_loss"] == pytest.approx(zero["first_loss"], abs=1e-5)
    assert positive(found["ratios"]["compiled/zero"])
    assert any(tmp_path.rglob("*.so")), "nothing was compiled"
    assert "compiled" not in dry[0]["eager, micro-batch 2"]["contestants"]


@pytest.mark.soak
def test_parts_of_the_model_that_cannot_run_say_why(dry):
    found = dry[0]["attention kernels and losses"]
    assert found["attention"]["sdpa"]["over_sdpa"] == 1
    assert found["loss"]["whole"]["over_whole"] == 1
    assert list(found["elementwise"]) == ["rms_norm", "rotary", "swiglu"]
    for each in [each for part in ("attention", "loss", "elementwise") for each in found[part].values()]:
        assert (each["ms"] is None) == bool(each["why_not"])


@pytest.mark.soak
def test_the_real_command_tells_its_rate_and_where_a_step_goes(dry):
    found = dry[0]["tinyllama.train"]
    assert positive(found["tokens_per_second"], found["seconds_to_first_step"])
    assert 0 <= found["data_wait_share"] < 1
    assert [part["name"] for part in found["profile"]["parts"]] == [*PARTS, OTHER]


@pytest.mark.soak
def test_a_part_that_fails_is_a_row_and_not_the_end(dry):
    results, table = dry
    assert list(results) == [part.name for part in dry_parts()]
    assert "invalid choice: 'none'" in results["of no such size"]["failed"]
    assert "| of no such size | train_step.py: error: argument --preset: invalid choice" in table
    for heading in ("Attention", "Loss", "Training steps", "The real command", "Where a step goes", "Not measured"):
        assert f"### {heading}" in table


def test_the_engine_trains_the_same_model_as_a_bare_loop(benchmark):
    found = benchmark("train_step", "--preset", "tiny", "--turns", "1", "--steps", "1", "--contestants", "zero,bare")
    zero, bare = (found["contestants"][name] for name in ("zero", "bare"))
    assert zero["first_loss"] == pytest.approx(bare["first_loss"], abs=1e-5)
    assert positive(found["ratios"]["zero/bare"], zero["tokens_per_second"], zero["first_step_seconds"])


def test_a_part_that_fails_is_a_row_of_the_table_and_of_the_files(benchmark, tmp_path):
    found = benchmark("gpu", "--out", str(tmp_path), "--dry", "--only", "of no such size")
    assert found == json.loads((tmp_path / "gpu.json").read_text())
    assert "invalid choice: 'none'" in found["of no such size"]["failed"]
    table = (tmp_path / "gpu.md").read_text()
    assert "| of no such size | train_step.py: error: argument --preset: invalid choice" in table


def test_a_part_that_takes_too_long_is_killed():
    assert run(Part("slow", ["report.py"], 100), seconds=0.5) == {"failed": "it took more than 0 s"}


def test_the_parts_for_gpus_are_commands_of_this_folder_with_options_that_they_know(monkeypatch):
    from benchmarks import model_parts, train_step, training_run

    for part in gpu_parts():
        script, *arguments = part.command
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        module = {"model_parts.py": model_parts, "train_step.py": train_step, "training_run.py": training_run}[script]
        assert module.parse() is not None
