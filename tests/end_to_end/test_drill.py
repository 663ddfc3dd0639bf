"""The drill says ok of a run that loses nothing, and names what a run has lost."""

import hashlib
import json
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

import tinyllama.drilling.drill
import tinyllama.drilling.life
from tests.forked import Forkserver
from tests.shared import copy_of, shared_folder
from tinyllama.checkpoint.files import write_sealed
from tinyllama.checkpoint.layout import RunFolder, Status
from tinyllama.drilling.comparison import Comparison
from tinyllama.proof.examination import Examination
from tinyllama.proof.record import read_records

CONTINUAL = ["+variant=chinese", "stage=continual", "stage.tokens=16K"]


def processes_that_name(path: Path) -> list[str]:
    """Command lines, of this machine's processes, in which a path stands."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().decode()
        except (OSError, UnicodeDecodeError):
            continue
        found += [command] if str(path) in command else []
    return found


# ---------------------------------------------------------------- a run that loses nothing


# The seed's kills: SIGKILL during a checkpoint and SIGTERM in a step of the run on its own rank, then SIGUSR1 during
# the start-up of the other run, whose two attempts have two and four ranks.
DRILL = ["drill.steps=12", "drill.kills=3", "drill.worlds=[2,4]", "drill.seed=292", "drill.keep=true", "format=json"]


@pytest.fixture(scope="session")
def drilled(settings, shell, tmp_path_factory) -> tuple[dict, str, Path]:
    """A drill whose stage has no parent yet: its document, what it said, its folder."""

    def build(folder: Path) -> None:
        result = shell("drill", *settings, *CONTINUAL, f"paths.runs={folder / 'runs'}", *DRILL)
        assert result.code == 0, result.err
        (folder / "out.json").write_text(result.out)
        (folder / "err.txt").write_text(result.err)

    folder = shared_folder(tmp_path_factory, "drilled", build)
    return json.loads((folder / "out.json").read_text()), (folder / "err.txt").read_text(), folder / "runs"


@pytest.fixture
def warm(forkserver: Forkserver, monkeypatch):
    """Drills in this process fork their attempts from the tests' server and need no time to import."""
    monkeypatch.setattr(tinyllama.drilling.drill, "ForkServer", lambda imports: nullcontext(forkserver.server))


@pytest.mark.slow
def test_nothing_is_lost_in_kills_of_every_kind_on_mixed_ranks(drilled):
    document, err, runs = drilled
    assert document["ok"] and document["samples_equal"] and document["bitwise_equal"]
    assert document["chain_equal"] and document["verified"] and document["repeatable"]
    assert document["worlds"] == [1, 2, 4]
    assert 0 <= document["max_loss_difference"] < 1e-4
    killed = [life for life in document["lives"] if life["signal"]]
    assert document["kills"] == len(killed) == 3
    assert {life["signal"] for life in killed} == {"SIGKILL", "SIGTERM", "SIGUSR1"}
    assert any(life["resumed_from_step"] for life in document["lives"])
    assert [life["at_step"] for life in document["lives"] if life["exit_code"] == 0] == [12, 12, 12]
    assert processes_that_name(runs) == []


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_nothing_is_lost_in_twenty_kills(small, shell, world):
    others = f"drill.worlds=[{','.join(str(each) for each in (1, 2, 4) if each != world)}]"
    long = ["stage=basic", "stage.tokens=62K", "schedule.horizon_tokens=62K"]
    drill = ["drill.steps=60", "drill.kills=20", f"drill.seed={world}", f"cluster.processes={world}", others]
    result = shell("drill", *small, *long, *drill, "format=json", timeout=1800)
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert (document["kills"], document["worlds"]) == (20, [1, 2, 4])


@pytest.mark.slow
def test_a_parent_that_is_not_done_is_shortened_and_that_is_said(drilled):
    _, err, runs = drilled
    assert "12 steps of continual, from a shortened parent" in err
    (folder,) = runs.glob(".drill-*")
    assert {entry.name for entry in folder.glob("parents/demo/*")} == {
        entry.name for entry in folder.glob("unbroken/demo/basic-*")
    }


@pytest.mark.slow
def test_every_life_has_a_line_on_standard_error(drilled):
    document, err, _ = drilled
    for number, life in enumerate(document["lives"], 1):
        assert f"drill: life {number} ({life['run']}, {life['world']} x {life['micro_batch']} samples)" in err


# ---------------------------------------------------------------- what the comparison must find


def found(folder: Path) -> tuple[Path, Path]:
    """Directories of the unbroken run and of the one that was killed on the same ranks."""
    (unbroken,), (broken,) = (folder.glob(f"{name}/demo/continual-*") for name in ("unbroken", "same_ranks"))
    return unbroken, broken


@pytest.fixture
def copies(drilled, tmp_path):
    """The drilled runs, to be damaged."""
    (folder,) = drilled[2].glob(".drill-*")
    return found(copy_of(folder, tmp_path / "drill"))


def compare(unbroken: Path, broken: Path, tolerance: float = 0.0) -> dict[str, str]:
    """The checks that failed, with the differences that they name."""
    plan = read_records(RunFolder(unbroken), Examination())[-1].plan
    comparison = Comparison(RunFolder(unbroken), RunFolder(broken), plan, tolerance)
    comparison.look()
    return {check.name: check.detail for check in comparison.checks if not check.ok}


def edit_line(path: Path, step: int, change: Callable[[dict], object]) -> None:
    lines = path.read_text().splitlines()
    fields = json.loads(lines[step - 1])
    change(fields)
    lines[step - 1] = json.dumps(fields, separators=(",", ":"))
    path.write_text("\n".join(lines) + "\n")


def reseal(path: Path, **changes: object) -> None:
    fields = {name: value for name, value in json.loads(path.read_text()).items() if name != "seal"}
    write_sealed(path, fields | changes)


def last_checkpoint(run: Path) -> Path:
    return max((run / "checkpoints").glob("0*"))


@pytest.mark.slow
def test_the_comparison_finds_equal_runs_equal(copies):
    assert compare(*copies) == {}


@pytest.mark.slow
def test_another_sample_is_named_by_its_step_and_place(copies):
    unbroken, broken = copies
    original = json.loads((unbroken / "samples.jsonl").read_text().splitlines()[6])["samples"][3]
    edit_line(broken / "samples.jsonl", 7, lambda line: line["samples"].__setitem__(3, ["skypile", 0, 1]))
    differing = compare(unbroken, broken)
    assert f"step 7: samples[3] is ['skypile', 0, 1], unbroken {original}" in differing["samples"]
    assert "verify" in differing


@pytest.mark.slow
def test_a_step_that_is_missing_or_there_twice_is_named(copies):
    unbroken, broken = copies
    lines = (broken / "metrics.jsonl").read_text().splitlines(keepends=True)
    (broken / "metrics.jsonl").write_text("".join(lines[:4] + lines[5:]))
    assert "step 5 should come, but there is 6" in compare(unbroken, broken)["metrics"]
    (broken / "metrics.jsonl").write_text("".join(lines[:5] + lines[4:]))
    assert "step 6 should come, but there is 5" in compare(unbroken, broken)["metrics"]
    (broken / "metrics.jsonl").write_text("".join(lines[:-1]))
    assert "step 12 should come, but there is None" in compare(unbroken, broken)["metrics"]


@pytest.mark.slow
def test_the_last_bit_of_a_loss_counts_on_the_same_ranks_and_rounding_does_not_on_others(copies):
    unbroken, broken = copies
    loss = json.loads((unbroken / "metrics.jsonl").read_text().splitlines()[8])["loss"]
    for wrong, tolerance, fails in (
        (loss * (1 + 1e-12), 0.0, True),
        (loss * (1 + 1e-12), 1e-4, False),
        (loss * (1 + 1e-3), 1e-4, True),
    ):
        edit_line(broken / "metrics.jsonl", 9, lambda line, wrong=wrong: line.update(loss=wrong))
        differing = compare(unbroken, broken, tolerance)
        assert ("metrics" in differing) == fails, (wrong, tolerance)
        assert not fails or f"step 9: loss is {wrong}, unbroken {loss}" in differing["metrics"]


@pytest.mark.slow
def test_other_weights_and_another_order_chain_are_found_though_their_manifest_vouches_for_them(copies):
    unbroken, broken = copies
    end = last_checkpoint(broken)
    content = bytearray((end / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (end / "weights.safetensors").unlink()  # the copy shares it with the drilled runs
    (end / "weights.safetensors").write_bytes(content)
    files = json.loads((end / "manifest.json").read_text())["files"]
    files["weights.safetensors"]["sha256"] = hashlib.sha256(content).hexdigest()
    reseal(end / "manifest.json", files=files, order_chain="1" * 64)
    differing = compare(unbroken, broken)
    assert f"weights.safetensors has the digest {files['weights.safetensors']['sha256'][:12]}" in differing["weights"]
    assert "the order chain at the end is 111111111111, unbroken" in differing["order"]
    assert "verify" in differing


@pytest.mark.slow
def test_a_run_without_its_end_is_not_equal(copies):
    unbroken, broken = copies
    shutil.rmtree(last_checkpoint(broken))
    assert {"order", "weights", "verify"} <= set(compare(unbroken, broken))


# ---------------------------------------------------------------- runs that do lose something

FORGETS_MOMENTS = """
from tinyllama.engine.zero import ZeroEngine

load = ZeroEngine.load
ZeroEngine.load = lambda self, folder, optimizer=True: load(self, folder, optimizer=False)
"""

REPEATS_A_BATCH = """
import tinyllama.training.serving as serving

loader, BATCH = serving.train_loader, 32

def behind(*arguments, start, stop, **others):
    late = BATCH if start else 0
    return loader(*arguments, start=start - late, stop=stop - late, **others)

serving.train_loader = behind
"""

DIES_ON_RESUME = """
import sys

import tinyllama.training.run as run

find = run.find_start

def find_or_die(*arguments, **others):
    found = find(*arguments, **others)
    if found[1].step:
        sys.exit("it cannot go on")
    return found

run.find_start = find_or_die
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault, differing, told",
    [
        (FORGETS_MOMENTS, {"metrics", "weights"}, "same ranks: metrics: "),
        (REPEATS_A_BATCH, {"samples", "metrics", "order", "weights", "verify"}, "same ranks: samples: "),
        (DIES_ON_RESUME, {"lives"}, "same ranks: lives: life 2 ended with exit code 1 though no signal was sent"),
    ],
    ids=["forgets moments", "repeats a batch", "dies on resume"],
)
def test_a_resume_that_loses_something_is_found_out(run, warm, small, tmp_path, monkeypatch, fault, differing, told):
    program = tmp_path / "faulty_train.py"
    program.write_text(f"{fault}\nfrom tinyllama.train import main\n\nmain()\n")
    monkeypatch.setattr(tinyllama.drilling.life, "TRAIN", program)
    # The seed's one kill is SIGTERM in the middle of the run: it leaves a checkpoint.
    result = run("drill", *small, "stage=basic", "drill.steps=12", "drill.kills=1", "drill.seed=14", "format=json")
    document = json.loads(result.out)
    assert (result.code, document["ok"], document["repeatable"]) == (3, False, True), document
    assert {check["name"].partition(": ")[2] for check in document["checks"] if not check["ok"]} == differing
    assert told in result.err
    assert document["samples_equal"] is ("samples" not in differing and "lives" not in differing)
    assert not document["bitwise_equal"]
    assert Path(document["folder"]).is_dir()  # for whoever looks into it


@pytest.mark.slow
def test_a_stage_that_does_not_train_at_all_is_told_as_train_tells_it(run, warm, small, tmp_path):
    result = run("drill", *small, "stage=basic", "cluster.attention=none_of_these", "drill.kills=1")
    assert result.code == 2
    assert "stage=basic does not come to its end even undisturbed" in result.err
    assert "cluster.attention=none_of_these is not known" in result.err
    assert list((tmp_path / "runs").glob(".drill-*")) == []


# ---------------------------------------------------------------- with a parent that is done


@pytest.mark.slow
def test_a_parent_that_is_done_is_used_as_it_is_and_the_folder_is_removed(small, run, warm, family_runs, tmp_path):
    (basic,) = (family_runs / "demo").glob("basic-*")
    parent = copy_of(basic, tmp_path / "runs" / "demo" / basic.name)

    def state() -> dict[Path, tuple[bytes, int]]:
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in parent.rglob("*") if path.is_file()}

    before = state()
    result = run("drill", *small, *CONTINUAL, "drill.steps=6", "drill.kills=1", "drill.seed=5")  # SIGKILL in a step
    assert result.code == 0, result.err
    assert f"6 steps of continual, from {parent.name} of {tmp_path / 'runs'}" in result.err
    assert "Nothing was lost. Kills: 1. Losses differ by at most" in result.out and "same ranks: weights" in result.out
    assert state() == before
    assert [entry.name for entry in (tmp_path / "runs").iterdir()] == ["demo"]
    assert [entry.name for entry in (tmp_path / "runs" / "demo").iterdir()] == [parent.name]
    assert RunFolder(parent).status is Status.done


@pytest.mark.slow
def test_a_drill_that_is_stopped_leaves_neither_processes_nor_files(small, begin, tmp_path):
    drill = begin("drill", *small, "stage=basic", "drill.kills=1")
    runs = tmp_path / "runs"
    while not list(runs.glob(".drill-*/unbroken/demo/*/config.yaml")):
        assert drill.poll() is None, drill.communicate()[1]
        time.sleep(0.01)
    drill.send_signal(signal.SIGTERM)
    _, err = drill.communicate()
    assert drill.returncode == 128 + signal.SIGTERM, err
    assert list(runs.iterdir()) == []
    assert processes_that_name(runs) == []


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "wrong, told",
    [
        (["drill.kills=0"], "drill.kills=0 must be 1 or more"),
        (["drill.steps=1"], "drill.steps=1 must be 2 or more"),
        (["drill.worlds=[3]"], "3 ranks cannot share a batch of 32 samples evenly"),
        (["cluster.nodes=2"], "add cluster.nodes=1 to drill on this one"),
    ],
    ids=["kills", "steps", "worlds", "nodes"],
)
def test_what_cannot_be_drilled_is_refused_before_anything_runs(run, small, tmp_path, wrong, told):
    result = run("drill", *small, "stage=basic", *wrong)
    assert result.code == 2
    assert told in result.err
    assert not list((tmp_path / "runs").glob("**/life*"))


def test_under_torchrun_it_is_refused(run, small, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    result = run("drill", *small, "stage=basic")
    assert result.code == 2
    assert "without torchrun or srun" in result.err
