"""Checkpoints are written behind training, are there whole or not at all, and say when they are not what they were."""

import errno
import json
import logging
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.checkpoint.conftest import at, snapshot
from tinyllama.checkpoint import store as store_module
from tinyllama.checkpoint.layout import RunFolder, Status
from tinyllama.checkpoint.manifest import read_checkpoint
from tinyllama.checkpoint.placing import adopt_checkpoint
from tinyllama.checkpoint.store import CheckpointStore
from tinyllama.engine.snapshot import Snapshot
from tinyllama.errors import DamageError
from tinyllama.planning.progress import Progress
from tinyllama.world import World

CHAIN = "c" * 64


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "basic-0123")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Between attempts."""
    monkeypatch.setattr(store_module, "PAUSES_SECONDS", (0.01, 0.01))


@pytest.fixture
def store(folder):
    return CheckpointStore(folder, "digest", World(), keep=2, protected=[100])


class Held(Snapshot):
    """Is written only when it is let go, and fails as long as it is told to."""

    def __init__(self, failures: int = 0, error: Exception | None = None):
        super().__init__(**vars(snapshot()))
        state = {"go": threading.Event(), "attempts": [], "failures": failures, "error": error}
        for name, value in state.items():
            object.__setattr__(self, name, value)

    def write(self, folder: Path) -> None:
        self.attempts.append(folder)
        assert self.go.wait(60)
        super().write(folder)
        if len(self.attempts) <= self.failures:
            raise self.error or OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __call__(self) -> Snapshot:
        return self

    def let_go(self) -> "Held":
        self.go.set()
        return self


def saved(store: CheckpointStore, tokens: int, take: Callable[[], Snapshot] = snapshot) -> str | None:
    store.write(at(tokens), CHAIN, take)
    return store.wait()


def names(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.checkpoints.iterdir())


def test_what_was_written_is_read_back_with_its_position(store, folder):
    assert saved(store, 30) is None
    checkpoint = read_checkpoint(folder, 30, "digest")
    assert (checkpoint.progress, checkpoint.order_chain, checkpoint.watch) == (at(30), CHAIN, None)
    assert load_file(checkpoint.path / "weights.safetensors")["w"].tolist() == [[1.0] * 100] * 3
    assert checkpoint.path.name == "000000000000030"
    assert folder.latest.read_text() == "000000000000030\n"


def test_the_state_of_the_watch_is_kept_in_the_manifest(store, folder):
    store.write(at(30), CHAIN, snapshot, {"mean": 0.1, "steps": [1, None]})
    assert store.wait() is None
    assert read_checkpoint(folder, 30, "digest").watch == {"mean": 0.1, "steps": [1, None]}


def test_training_goes_on_while_a_checkpoint_is_written(store, folder):
    held = Held()
    store.write(at(30), CHAIN, held)  # returns, though nothing can be written yet
    assert folder.checkpoint_tokens() == []
    held.let_go()
    assert store.wait() is None
    assert folder.checkpoint_tokens() == [30]


def test_the_next_checkpoint_waits_for_the_one_in_flight_before_it_takes_its_copy(store, folder):
    first = Held()
    store.write(at(30), CHAIN, first)
    threading.Timer(0.1, first.let_go).start()
    found: list[list[int]] = []

    def take() -> Snapshot:
        found.append(folder.checkpoint_tokens())
        return snapshot()

    assert saved(store, 40, take) is None
    assert found == [[30]]
    assert folder.checkpoint_tokens() == [30, 40]


def test_a_write_that_fails_is_tried_again_with_the_same_state(store, folder, caplog):
    held = Held(failures=2).let_go()
    assert saved(store, 30, held) is None
    assert len(set(held.attempts)) == len(held.attempts) == 3  # another rank could mistake one folder for another
    assert names(folder) == ["000000000000030"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2


def test_a_write_that_fails_for_good_leaves_what_was_there_and_says_what_to_do(store, folder, caplog):
    assert saved(store, 30) is None
    before = {path.name: path.read_bytes() for path in folder.checkpoint(30).iterdir()}
    failure = saved(store, 40, Held(failures=9).let_go())
    assert failure is not None and "\n" not in failure
    assert "checkpoint of step 4, 3.73KiB, could not be written: No space left on device" in failure
    assert str(folder.checkpoints) in failure and "are free; remove what" in failure
    assert caplog.records[-1].getMessage() == f"{failure}; tried again with the next one"
    assert names(folder) == ["000000000000030"]
    assert {path.name: path.read_bytes() for path in folder.checkpoint(30).iterdir()} == before
    assert saved(store, 50) is None
    assert folder.checkpoint_tokens() == [30, 50]


def test_a_run_that_cannot_save_its_end_names_the_checkpoint_that_it_goes_on_from(store, folder):
    store.write(at(20), CHAIN, Held(failures=9).let_go())
    with pytest.raises(DamageError, match="the same command starts anew"):
        store.require_saved()
    assert not folder.checkpoints.exists()  # or it would look as if someone had taken them away
    assert saved(store, 30) is None
    store.require_saved()
    store.write(at(40), CHAIN, Held(failures=9, error=ValueError("odd")).let_go())
    with pytest.raises(DamageError, match=rf"ValueError: odd.* goes on from {folder.checkpoint(30)}"):
        store.require_saved()


def test_one_that_failed_is_not_tried_again_when_a_newer_one_is_due_unless_it_is_a_milestone(
    store, folder, monkeypatch
):
    monkeypatch.setattr(store_module, "PAUSES_SECONDS", (600.0,))
    held = Held(failures=1)
    store.write(at(30), CHAIN, held)
    threading.Timer(0.1, held.let_go).start()
    assert saved(store, 40) is None
    assert (len(held.attempts), folder.checkpoint_tokens()) == (1, [40])
    monkeypatch.setattr(store_module, "PAUSES_SECONDS", (0.01,))
    milestone = Held(failures=1)
    store.write(at(100), CHAIN, milestone)
    threading.Timer(0.1, milestone.let_go).start()
    assert saved(store, 110) is None
    assert (len(milestone.attempts), folder.checkpoint_tokens()) == (2, [40, 100, 110])


def test_leaving_lets_the_checkpoint_in_flight_come_down(store, folder):
    held = Held()
    store.write(at(30), CHAIN, held)
    threading.Timer(0.1, held.let_go).start()
    store.close()
    assert folder.checkpoint_tokens() == [30]


def test_leaving_does_not_wait_for_a_rank_that_is_gone(folder, monkeypatch):
    monkeypatch.setattr(store_module, "_GRACE_SECONDS", 0.1)
    main = CheckpointStore(folder, "digest", World(0, 2), keep=2)  # nobody plays the other
    main.write(at(30), CHAIN, snapshot)
    main.close()
    assert folder.checkpoint_tokens() == [] and not folder.leftovers()


def test_a_rank_that_does_not_write_its_part_is_named(folder, caplog):
    main = CheckpointStore(folder, "digest", World(0, 3), keep=2, timeout_minutes=0.001)
    main.write(at(30), CHAIN, snapshot)
    main.close()
    assert "rank 1 has not written its part" in caplog.text
    assert folder.checkpoint_tokens() == []


def test_a_disk_that_does_not_keep_what_was_written_makes_no_checkpoint(store, folder, monkeypatch):
    assert saved(store, 30) is None
    describe = store_module.describe_all

    def fail_behind(paths: list[Path]) -> list[dict]:
        found = describe(paths)
        flip(paths[0])
        return found

    monkeypatch.setattr(store_module, "describe_all", fail_behind)
    failure = saved(store, 40)
    assert failure is not None and "exp_avg.safetensors is damaged" in failure
    assert names(folder) == ["000000000000030"]


def test_leftovers_of_a_life_that_was_cut_short_are_removed_at_the_next_start(store, folder):
    assert saved(store, 30) is None
    for name in (".000000000000040.0.writing", ".000000000000040.writing", ".000000000000020.removing"):
        (folder.checkpoints / name).mkdir()
        (folder.checkpoints / name / "weights.safetensors").write_bytes(b"half")
    assert len(folder.leftovers()) == 3
    CheckpointStore(folder, "digest", World(), keep=2)
    assert names(folder) == ["000000000000030"]


def test_one_that_is_damaged_is_replaced_when_training_passes_there_again_and_does_not_count(store, folder):
    for tokens in (30, 40, 50):
        assert saved(store, tokens) is None
    flip(folder.checkpoint(50) / "weights.safetensors")
    assert saved(store, 45) is None
    assert folder.checkpoint_tokens() == [40, 45, 50]
    assert saved(store, 50) is None
    assert folder.checkpoint_tokens() == [45, 50]
    read_checkpoint(folder, 50, "digest")


def test_that_old_ones_cannot_be_removed_is_no_failure(store, folder, monkeypatch, caplog):
    def refuse(*_: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), "there")

    monkeypatch.setattr(store_module, "remove", refuse)
    for tokens in (30, 40, 50):
        assert saved(store, tokens) is None
    assert folder.checkpoint_tokens() == [30, 40, 50]
    assert f"could not be removed: Permission denied in {folder.checkpoints}" in caplog.text


def test_a_checkpoint_is_safe_although_nothing_can_be_told_of_it(store, folder):
    folder.latest.mkdir(parents=True)  # so that no file can get its name
    assert saved(store, 30) is None
    assert names(folder) == ["000000000000030"]
    read_checkpoint(folder, 30, "digest")


def test_the_last_two_and_the_protected_ones_stay(store, folder):
    for tokens in (80, 90, 100, 110, 120, 130):
        assert saved(store, tokens) is None
    assert folder.checkpoint_tokens() == [100, 120, 130]


def test_positions_are_ordered_as_numbers_beyond_any_number_of_digits(folder):
    for tokens in (999_999_999_999_999, 2_000_000_000_000_000, 5):
        folder.checkpoint(tokens).mkdir(parents=True)
    assert folder.checkpoint_tokens() == [5, 999_999_999_999_999, 2_000_000_000_000_000]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"digest": "digest", "progress": 3, "files": {}}'])
def test_an_unreadable_manifest_is_damage(store, folder, content):
    assert saved(store, 30) is None
    (folder.checkpoint(30) / "manifest.json").write_text(content)
    with pytest.raises(DamageError, match=r"manifest\.json"):
        read_checkpoint(folder, 30, "digest")


def test_every_line_of_a_manifest_counts(store, folder):
    assert saved(store, 30) is None
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
    assert saved(store, 30) is None
    path = folder.checkpoint(30) / "manifest.json"
    whole = json.loads(path.read_text())
    nested = [("progress", "step"), ("progress", "tokens"), ("files", "weights.safetensors"), ("versions", "tinyllama")]
    for place in [*((name,) for name in whole), *nested]:
        changed = json.loads(json.dumps(whole))
        *outer, name = place
        del (changed[outer[0]] if outer else changed)[name]
        path.write_text(json.dumps(changed, indent=1) + "\n")
        with pytest.raises(DamageError, match=r"manifest\.json"):
            read_checkpoint(folder, 30, "digest")
    path.write_text(json.dumps(whole, indent=1) + "\n")
    read_checkpoint(folder, 30, "digest")
    path.write_text(json.dumps(whole))  # the same fields, but not the bytes that were written
    with pytest.raises(DamageError, match=r"manifest\.json"):
        read_checkpoint(folder, 30, "digest")


def test_an_adopted_checkpoint_is_a_copy_that_says_where_it_came_from(store, folder, tmp_path):
    assert saved(store, 30) is None
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
    (folder.checkpoint(30) / "weights.safetensors").write_bytes(b"")  # a copy, not another name of the same file
    read_checkpoint(other, 30, "another")


def test_a_damaged_checkpoint_is_not_adopted(store, folder, tmp_path):
    assert saved(store, 30) is None
    (folder.checkpoint(30) / "weights.safetensors").write_bytes(b"x" * 1000)
    other = RunFolder(tmp_path / "other-4567")
    with pytest.raises(DamageError, match="weights.safetensors is damaged"):
        adopt_checkpoint(folder.checkpoint(30), other, "another", at(30), {})
    assert other.checkpoint_tokens() == []


def test_the_checkpoints_of_an_adopted_run_hand_on_where_it_came_from(folder):
    origin = {"path": "elsewhere", "digest": "other"}
    assert saved(CheckpointStore(folder, "digest", World(), keep=2, adopted=origin), 30) is None
    assert read_checkpoint(folder, 30, "digest").adopted == origin


def test_a_missing_file_and_a_checkpoint_of_another_run_are_damage(store, folder):
    assert saved(store, 30) is None
    with pytest.raises(DamageError, match="belongs to another run"):
        read_checkpoint(folder, 30, "another")
    (folder.checkpoint(30) / "weights.safetensors").unlink()
    with pytest.raises(DamageError, match="weights.safetensors is missing"):
        read_checkpoint(folder, 30, "digest")


def test_the_manifest_tells_every_file_the_position_and_the_world(store, folder):
    assert saved(store, 30) is None
    manifest = json.loads((folder.checkpoint(30) / "manifest.json").read_text())
    kinds = ("weights", "exp_avg", "exp_avg_sq")
    assert set(manifest["files"]) == {*(f"{kind}.safetensors" for kind in kinds), "optimizer.json"}
    sizes = [path.stat().st_size for path in folder.checkpoint(30).glob("*") if path.name != "manifest.json"]
    assert sorted(entry["bytes"] for entry in manifest["files"].values()) == sorted(sizes)
    assert manifest["progress"] == {"step": 3, "samples": 30, "tokens": 30}
    assert manifest["world_size"] == 1


def test_a_run_is_absent_then_partial_then_done(folder):
    assert folder.status is Status.absent
    folder.path.mkdir(parents=True)
    folder.identity.write_text("{}")
    assert folder.status is Status.partial
    folder.done.write_text("{}")
    assert folder.status is Status.done


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[random.Random(0).randrange(len(content))] ^= 1
    path.write_bytes(content)
