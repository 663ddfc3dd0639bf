"""Checkpoints are there whole or not at all, and say when they are not what they were."""

import json
import random
from pathlib import Path

import pytest

from tinyllama.checkpoint.layout import RunFolder, Status
from tinyllama.checkpoint.manifest import read_checkpoint
from tinyllama.checkpoint.store import CheckpointStore, adopt_checkpoint
from tinyllama.errors import DamageError
from tinyllama.planning.progress import Progress
from tinyllama.world import World


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "basic-0123")


@pytest.fixture
def store(folder):
    return CheckpointStore(folder, "digest", World(), keep=2, protected=[100])


CHAIN = "c" * 64


def at(tokens: int) -> Progress:
    return Progress(step=tokens // 10, samples=tokens, tokens=tokens)


def save(path: Path) -> None:
    (path / "weights").write_bytes(b"w" * 1000)
    (path / "moments").write_bytes(b"m" * 500)


def test_what_was_written_is_read_back_with_its_position(store, folder):
    store.write(at(30), CHAIN, save)
    checkpoint = read_checkpoint(folder, 30, "digest")
    assert (checkpoint.progress, checkpoint.order_chain) == (at(30), CHAIN)
    assert (checkpoint.path / "weights").read_bytes() == b"w" * 1000
    assert checkpoint.path.name == "000000000000030"


def test_a_write_that_fails_leaves_what_was_there_and_nothing_that_looks_like_a_checkpoint(store, folder):
    store.write(at(30), CHAIN, save)

    def fail(path: Path) -> None:
        save(path)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.write(at(40), CHAIN, fail)
    assert folder.checkpoint_tokens() == [30]
    store.write(at(40), CHAIN, save)
    assert folder.checkpoint_tokens() == [30, 40]
    assert [path.name for path in folder.checkpoints.iterdir() if path.name.startswith(".")] == []


def test_the_last_two_and_the_protected_ones_stay(store, folder):
    for tokens in (80, 90, 100, 110, 120, 130):
        store.write(at(tokens), CHAIN, save)
    assert folder.checkpoint_tokens() == [100, 120, 130]


def test_positions_are_ordered_as_numbers_beyond_any_number_of_digits(folder):
    for tokens in (999_999_999_999_999, 2_000_000_000_000_000, 5):
        folder.checkpoint(tokens).mkdir(parents=True)
    assert folder.checkpoint_tokens() == [5, 999_999_999_999_999, 2_000_000_000_000_000]


def test_any_flipped_bit_and_any_truncation_is_found(store, folder):
    store.write(at(30), CHAIN, save)
    dice = random.Random(0)
    for _ in range(30):
        path = folder.checkpoint(30) / dice.choice(["weights", "moments"])
        whole = path.read_bytes()
        place = dice.randrange(len(whole))
        changed = whole[:place] + bytes([whole[place] ^ 1 << dice.randrange(8)]) + whole[place + 1 :]
        path.write_bytes(dice.choice([changed, whole[:place]]))
        with pytest.raises(DamageError, match=path.name):
            read_checkpoint(folder, 30, "digest")
        path.write_bytes(whole)
    read_checkpoint(folder, 30, "digest")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"digest": "digest", "progress": 3, "files": {}}'])
def test_an_unreadable_manifest_is_damage(store, folder, content):
    store.write(at(30), CHAIN, save)
    (folder.checkpoint(30) / "manifest.json").write_text(content)
    with pytest.raises(DamageError, match=r"manifest\.json"):
        read_checkpoint(folder, 30, "digest")


def test_every_line_of_a_manifest_counts(store, folder):
    store.write(at(30), CHAIN, save)
    path = folder.checkpoint(30) / "manifest.json"
    lines = path.read_text().splitlines(keepends=True)
    for number in range(len(lines)):
        path.write_text("".join(lines[:number] + lines[number + 1 :]))
        with pytest.raises(DamageError, match=r"manifest\.json"):
            read_checkpoint(folder, 30, "digest")
    path.write_text("".join(lines))
    read_checkpoint(folder, 30, "digest")


def test_every_field_of_a_manifest_counts(store, folder):
    """Also where what is left is good JSON."""
    store.write(at(30), CHAIN, save)
    path = folder.checkpoint(30) / "manifest.json"
    whole = json.loads(path.read_text())
    nested = [("progress", "step"), ("progress", "tokens"), ("files", "weights"), ("files", "moments")]
    for place in [*((name,) for name in whole), *nested, ("versions", "tinyllama")]:
        changed = json.loads(path.read_text())
        *outer, name = place
        del (changed[outer[0]] if outer else changed)[name]
        path.write_text(json.dumps(changed))
        with pytest.raises(DamageError, match=r"manifest\.json"):
            read_checkpoint(folder, 30, "digest")
        path.write_text(json.dumps(whole))
    read_checkpoint(folder, 30, "digest")


def test_an_adopted_checkpoint_is_a_copy_that_says_where_it_came_from(store, folder, tmp_path):
    store.write(at(30), CHAIN, save)
    other, progress = RunFolder(tmp_path / "other-4567"), Progress(step=6, samples=60, tokens=30)
    adopt_checkpoint(folder.checkpoint(30), other, "another", progress, {"by": "a person"})
    adopted = read_checkpoint(other, 30, "another")
    assert (adopted.digest, adopted.progress, adopted.order_chain) == ("another", progress, CHAIN)
    assert adopted.adopted == {
        "by": "a person",
        "path": str(folder.checkpoint(30)),
        "digest": "digest",
        "order_chain": CHAIN,
        "progress": {"step": 6, "samples": 60, "tokens": 30},
    }
    (folder.checkpoint(30) / "weights").write_bytes(b"")  # a copy, not another name of the same file
    read_checkpoint(other, 30, "another")


def test_a_damaged_checkpoint_is_not_adopted(store, folder, tmp_path):
    store.write(at(30), CHAIN, save)
    (folder.checkpoint(30) / "weights").write_bytes(b"x" * 1000)
    other = RunFolder(tmp_path / "other-4567")
    with pytest.raises(DamageError, match="weights is damaged"):
        adopt_checkpoint(folder.checkpoint(30), other, "another", at(30), {})
    assert other.checkpoint_tokens() == []


def test_the_checkpoints_of_an_adopted_run_hand_on_where_it_came_from(folder):
    origin = {"path": "elsewhere", "digest": "other"}
    CheckpointStore(folder, "digest", World(), keep=2, adopted=origin).write(at(30), CHAIN, save)
    assert read_checkpoint(folder, 30, "digest").adopted == origin


def test_a_missing_file_and_a_checkpoint_of_another_run_are_damage(store, folder):
    store.write(at(30), CHAIN, save)
    with pytest.raises(DamageError, match="belongs to another run"):
        read_checkpoint(folder, 30, "another")
    (folder.checkpoint(30) / "weights").unlink()
    with pytest.raises(DamageError, match="weights is missing"):
        read_checkpoint(folder, 30, "digest")


def test_the_manifest_tells_every_file_the_position_and_the_world(store, folder):
    store.write(at(30), CHAIN, save)
    manifest = json.loads((folder.checkpoint(30) / "manifest.json").read_text())
    assert set(manifest["files"]) == {"weights", "moments"}
    assert manifest["files"]["weights"]["bytes"] == 1000
    assert manifest["progress"] == {"step": 3, "samples": 30, "tokens": 30}
    assert manifest["world_size"] == 1


def test_a_run_is_absent_then_partial_then_done(folder):
    assert folder.status is Status.absent
    folder.path.mkdir(parents=True)
    folder.identity.write_text("{}")
    assert folder.status is Status.partial
    folder.done.write_text("{}")
    assert folder.status is Status.done
