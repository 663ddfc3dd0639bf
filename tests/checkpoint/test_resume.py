"""A run goes on from the newest state that is whole, says what it has lost, and never starts anew in silence."""

import json
import random
import shutil
from collections.abc import Callable

import pytest

from tests.checkpoint.conftest import at, snapshot
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.checkpoint.manifest import MANIFEST, Checkpoint
from tinyllama.checkpoint.resume import find_start
from tinyllama.checkpoint.store import CheckpointStore
from tinyllama.data.inventory import take_inventory
from tinyllama.errors import DamageError
from tinyllama.planning.plan import RunPlan, make_plan
from tinyllama.planning.progress import Progress
from tinyllama.world import World

FLIPS, TRUNCATIONS = 100, 50


@pytest.fixture
def plan(compose, tmp_path) -> Callable[[str], RunPlan]:
    def make(stage: str) -> RunPlan:
        path = compose("+scale=demo", f"stage={stage}", f"paths.data={tmp_path}")
        return make_plan(path, take_inventory(path))

    return make


@pytest.fixture
def basic(plan) -> RunPlan:
    return plan("basic")


@pytest.fixture
def runs(tmp_path) -> str:
    return str(tmp_path / "runs")


@pytest.fixture
def folder(basic, runs) -> RunFolder:
    """Of a run that has checkpoints at 30 and 40 tokens, and a journal up to 45."""
    folder = RunFolder.of(runs, basic)
    write(folder, basic.digest, 30, 40)
    folder.metrics.write_text("".join(json.dumps({"step": n, "tokens": 5 * n}) + "\n" for n in range(1, 10)) + '{"st')
    return folder


def write(folder: RunFolder, digest: str, *positions: int) -> None:
    store = CheckpointStore(folder, digest, World(), keep=9)
    for tokens in positions:
        store.write(halved(tokens), "c" * 64, snapshot)
        assert store.wait() is None


def halved(tokens: int) -> Progress:
    """After batches of five samples of one token."""
    return Progress(step=tokens // 5, samples=tokens, tokens=tokens)


def start(plan: RunPlan, runs: str) -> tuple[Checkpoint | None, Progress]:
    return find_start(plan, runs, World())


def test_a_run_goes_on_from_its_newest_checkpoint_and_says_which_steps_it_takes_again(basic, runs, folder, caplog):
    checkpoint, progress = start(basic, runs)
    assert checkpoint is not None and checkpoint.path == folder.checkpoint(40)
    assert progress == halved(40)
    assert caplog.messages == ["no sound checkpoint holds what came after step 8: 1 steps, 5 tokens, are trained again"]


def test_every_flipped_byte_and_every_truncation_is_found_before_a_weight_is_loaded(basic, runs, folder):
    dice = random.Random(4)
    shutil.rmtree(folder.checkpoint(30))
    files = sorted(folder.checkpoint(40).iterdir())
    assert len(files) == 5
    kinds = ["flip"] * FLIPS + ["truncation"] * TRUNCATIONS
    for kind in kinds:
        path = dice.choice(files)
        whole = path.read_bytes()
        place = dice.randrange(len(whole))
        changed = whole[:place] + bytes([whole[place] ^ dice.randrange(1, 256)]) + whole[place + 1 :]
        path.write_bytes(changed if kind == "flip" else whole[:place])
        with pytest.raises(DamageError, match="none of the 1 checkpoints"):
            start(basic, runs)
        path.write_bytes(whole)
    assert start(basic, runs)[1] == halved(40)


@pytest.mark.parametrize("name", ["weights.safetensors", "exp_avg.safetensors", "optimizer.json", MANIFEST])
def test_a_missing_file_leads_to_the_checkpoint_before_with_a_word(basic, runs, folder, caplog, name):
    (folder.checkpoint(40) / name).unlink()
    assert start(basic, runs)[1] == halved(30)
    first, second = caplog.messages
    assert name in first and "trying the checkpoint before it" in first
    assert second == "no sound checkpoint holds what came after step 6: 3 steps, 15 tokens, are trained again"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"digest": 3}'])
def test_an_unreadable_manifest_leads_to_the_checkpoint_before(basic, runs, folder, caplog, content):
    (folder.checkpoint(40) / MANIFEST).write_bytes(content)
    assert start(basic, runs)[1] == halved(30)
    assert MANIFEST in caplog.messages[0]


def test_a_newest_checkpoint_that_is_gone_altogether_is_missed(basic, runs, folder, caplog):
    shutil.rmtree(folder.checkpoint(40))
    assert start(basic, runs)[1] == halved(30)
    assert caplog.messages[0] == f"{folder.checkpoint(40)}, the last checkpoint that was written, is missing"


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"000000000000030\n"])
def test_nothing_depends_on_what_latest_says(basic, runs, folder, content):
    folder.latest.unlink()
    if content is not None:
        folder.latest.write_bytes(content)
    assert start(basic, runs)[1] == halved(40)


def test_a_checkpoint_of_another_run_is_not_taken(basic, runs, folder, caplog):
    write(folder, "f" * 64, 50)
    assert start(basic, runs)[1] == halved(40)
    assert "belongs to another run" in caplog.messages[0]
    for tokens in (30, 40):
        shutil.rmtree(folder.checkpoint(tokens))
    with pytest.raises(DamageError, match="none of the 1 checkpoints"):
        start(basic, runs)


def test_without_a_good_one_the_run_refuses(basic, runs, folder):
    for tokens in (30, 40):
        (folder.checkpoint(tokens) / "optimizer.json").write_text("{}")
    with pytest.raises(DamageError, match="none of the 2 checkpoints .* is whole; restore one from a copy"):
        start(basic, runs)


@pytest.mark.parametrize("trace", ["LATEST", "an empty folder"])
def test_a_run_whose_checkpoints_were_taken_away_refuses(basic, runs, folder, trace):
    shutil.rmtree(folder.checkpoints)
    if trace == "an empty folder":
        folder.checkpoints.mkdir()
        folder.latest.unlink()
    with pytest.raises(DamageError, match="have been taken away; restore one from a copy"):
        start(basic, runs)


def test_a_run_that_died_before_its_first_checkpoint_starts_anew_with_a_word(basic, runs, folder, caplog):
    shutil.rmtree(folder.checkpoints)
    folder.latest.unlink()
    folder.writing(30).mkdir(parents=True)
    assert start(basic, runs) == (None, at(0))
    assert [text.partition(": ")[2] for text in caplog.messages] == ["9 steps, 45 tokens, are trained again"]
    CheckpointStore(folder, basic.digest, World(), keep=2)  # cleans up, and leaves no empty folder
    assert start(basic, runs) == (None, at(0))


def test_a_run_that_has_not_begun_says_nothing(basic, runs, caplog):
    assert start(basic, runs) == (None, at(0))
    assert caplog.messages == []


def test_a_child_starts_from_the_end_of_its_parent_and_refuses_where_that_is_damaged(plan, basic, runs):
    child, parent = plan("continual"), RunFolder.of(runs, basic)
    assert child.parent is not None and child.parent.digest == basic.digest
    end = Progress(basic.steps, basic.samples, basic.end_tokens)
    store = CheckpointStore(parent, basic.digest, World(), keep=1)
    store.write(end, "c" * 64, snapshot)
    assert store.wait() is None
    checkpoint, progress = start(child, runs)
    assert checkpoint is not None and checkpoint.path == parent.checkpoint(basic.end_tokens)
    assert progress == Progress(0, 0, basic.end_tokens)
    (checkpoint.path / "optimizer.json").write_text("{}")
    with pytest.raises(DamageError, match=r"optimizer.json is damaged"):
        start(child, runs)
