"""Preparations that are killed, shared and started again: they do only what is missing and come to the same bytes."""

import os
import random
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from threading import Barrier

import pytest

from tests.data.preparing import SEQ_LEN, contents, kill, listed, parts, steps, write
from tinyllama.config.schema import PreparationConfig
from tinyllama.data import pack
from tinyllama.data import parts as parts_module
from tinyllama.data.prepare import missing_parts, prepare_share
from tinyllama.data.recipe import lay_out
from tinyllama.errors import ConfigError, TinyllamaError

ALONE = PreparationConfig(processes=1)


@pytest.fixture
def below(tmp_path, folder):
    """below(data) is where the latest version stands in another data folder."""
    return lambda data: data / folder.relative_to(tmp_path / "data")


@pytest.fixture
def whole(three_parts, tmp_path, prepare, below):
    """whole() is what an unbroken preparation of the present files comes to."""

    def prepared():
        prepare(data=tmp_path / "whole")
        return contents(below(tmp_path / "whole"))

    return prepared


@pytest.mark.slow
@pytest.mark.parametrize("known", [False, True])
def test_a_preparation_that_is_killed_at_any_step_goes_on_to_the_same_bytes(whole, tmp_path, prepare, below, known):
    def ready(name):
        if known:  # another version stands, which the new one shares two parts with
            prepare(data=tmp_path / name, files=[f"{tmp_path}/raw/0.jsonl", f"{tmp_path}/raw/1.jsonl"])
        return tmp_path / name

    data = ready("counted")
    taken = steps(lambda: prepare(data=data))
    moments = [number for number, name in enumerate(taken) if name not in ("fsync", "unlink", "rmdir")]
    expected = whole()
    for step in [*random.Random(known).sample(moments, 6), len(taken) - 1]:
        data = ready(str(step))
        link = below(data)
        before = contents(link) if known else None
        kill(lambda data=data: prepare(data=data), step)
        if known:
            assert contents(link) in (before, expected)
        prepare(data=data)
        assert contents(link) == expected
        assert len(listed(link.parent)) == 4 + known  # the link, the lock, the parts, a version or two
        assert {path.name for path in (link.parent / ".tales-parts").iterdir()} == set(parts(data))


@pytest.fixture
def forked_workers(monkeypatch):
    """Workers begin with all that this process has imported and replaced."""
    fork = get_context("fork")
    monkeypatch.setattr(fork, "set_forkserver_preload", lambda _: None)
    monkeypatch.setattr(parts_module.multiprocessing, "get_context", lambda _: fork)


@pytest.mark.parametrize("processes", [1, 2])
def test_five_kills_in_a_row_come_to_the_same_bytes(whole, tmp_path, prepare, below, processes, forked_workers):
    for index in range(3, 9):
        shutil.copy(tmp_path / "raw" / f"{index % 3}.jsonl", tmp_path / "raw" / f"{index}.jsonl")
    expected, data, made = whole(), tmp_path / "data", {}

    def begin(done):
        """Be killed when so many parts are done."""
        prepare(data=data, processes=2, progress=lambda _, found, total: found >= done and os.kill(os.getpid(), 9))

    for each in range(5):
        if processes == 1:
            kill(lambda: prepare(data=data), random.Random(each).randrange(40, 70))
        else:
            kill(lambda done=each + 2: begin(done))
        assert made.items() <= parts(data).items()
        made = parts(data)
    assert len(made) >= 4
    prepare(processes=processes)
    assert made.items() <= parts(data).items()
    assert contents(below(data)) == expected


@pytest.fixture
def work(three_parts, tmp_path, corpus, tokenizer):
    """work() lists the raw files anew, as each task does."""
    return lambda: lay_out(corpus(), tokenizer, SEQ_LEN, tmp_path / "data")


def made_by(data: Path, action):
    """The parts that an action makes, by number in the names' order of their first appearance."""
    before = parts(data)
    action()
    return {name for name, inode in parts(data).items() if before.get(name) != inode}


def test_a_raw_file_that_changed_after_an_interruption_never_mixes_with_what_it_was(
    whole, tmp_path, prepare, folder, sentences, work
):
    prepare_share(work(), 0, 1, preparation=ALONE)
    old = [part.folder.name for part in work().parts]
    write(tmp_path, sentences(170, seed=7), "1.jsonl")
    new = [part.folder.name for part in work().parts]
    assert (old[0], old[2]) == (new[0], new[2]) and old[1] != new[1]
    assert made_by(tmp_path / "data", prepare) == {new[1]}
    assert set(parts(tmp_path / "data")) == set(new)
    assert contents(folder) == whole()


def test_parts_of_another_recipe_are_not_taken_and_go_when_they_are_not_wanted(whole, tmp_path, prepare, folder, corpus,
                                                                               tokenizer):  # fmt: skip
    other = lay_out(corpus(validation_fraction=0.2), tokenizer, SEQ_LEN, tmp_path / "data")
    prepare_share(other, 0, 1, preparation=ALONE)
    assert len(made_by(tmp_path / "data", prepare)) == 3
    assert not set(parts(tmp_path / "data")) & {part.folder.name for part in other.parts}
    assert contents(folder) == whole()


@pytest.mark.parametrize("content", ["", "{", '{"documents": {}}'])
def test_a_part_whose_own_manifest_cannot_be_understood_is_made_again(whole, tmp_path, prepare, folder, work, content):
    prepare_share(work(), 0, 1, preparation=ALONE)
    part = work().parts[1].folder
    (part / "part.json").write_text(content)
    before = parts(tmp_path / "data")
    (part / "marker").touch()  # goes with the part
    prepare()
    assert not (part / "marker").exists()
    assert {name: inode for name, inode in parts(tmp_path / "data").items() if name != part.name} == {
        name: inode for name, inode in before.items() if name != part.name
    }
    assert contents(folder) == whole()


def test_a_raw_file_that_changes_while_it_is_read_is_refused(three_parts, tmp_path, prepare, folder, monkeypatch):
    read = pack.read_documents

    def growing(path, *settings):
        yield from read(path, *settings)
        if path.name == "1.jsonl":
            os.utime(path, (1, 1))

    with monkeypatch.context() as patch:
        patch.setattr(pack, "read_documents", growing)
        with pytest.raises(ConfigError, match=r"1.jsonl.* changed"):
            prepare()
    assert not folder.exists()
    assert prepare().documents


# ---------------------------------------------------------------- shared among machines


def test_shares_in_any_order_and_more_than_once_come_to_the_same_corpus(whole, work, tmp_path, prepare, folder):
    names, data = [part.folder.name for part in work().parts], tmp_path / "data"
    assert made_by(data, lambda: prepare_share(work(), 1, 2, preparation=ALONE)) == {names[1]}
    assert made_by(data, lambda: prepare_share(work(), 0, 2, preparation=ALONE)) == {names[0], names[2]}
    assert not made_by(data, lambda: prepare_share(work(), 1, 2, preparation=ALONE))
    assert not folder.exists()
    assert not made_by(data, prepare)
    assert contents(folder) == whole()
    assert not made_by(data, lambda: prepare_share(work(), 0, 2, preparation=ALONE))


def test_a_share_with_a_damaged_file_makes_its_other_parts(work, tmp_path):
    raw = tmp_path / "raw" / "0.jsonl"
    raw.write_text("[" + raw.read_text())
    with pytest.raises(ConfigError, match="0.jsonl:1"):
        prepare_share(work(), 0, 2, preparation=ALONE)
    assert set(parts(tmp_path / "data")) == {work().parts[2].folder.name}


def test_twins_at_the_same_share_do_not_disturb_each_other(whole, work, tmp_path, prepare, folder, monkeypatch):
    both, sync_tree = Barrier(2, timeout=60), parts_module.sync_tree
    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(parts_module, "sync_tree", lambda folder: (both.wait(), sync_tree(folder)))
        list(pool.map(lambda _: prepare_share(work(), 0, 1, preparation=ALONE), range(2)))
    assert {path.name for path in work().store.iterdir()} == {part.folder.name for part in work().parts}
    prepare()
    assert contents(folder) == whole()


def test_what_is_missing_is_told_without_reading_a_raw_file(work, tmp_path, prepare):
    assert missing_parts(work()) == [0, 1, 2]
    prepare_share(work(), 1, 3, preparation=ALONE)
    for path in (tmp_path / "raw").iterdir():  # unreadable, but of the same size and time
        status = path.stat()
        path.rename(path.with_suffix(".kept"))
        path.write_bytes(bytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert missing_parts(work()) == [0, 2]
    for path in (tmp_path / "raw").glob("*.kept"):
        path.rename(path.with_suffix(".jsonl"))
    prepare()
    assert missing_parts(work()) is None


def test_two_preparations_at_once_do_the_work_once(tmp_path, prepare, sentences):
    write(tmp_path, sentences(200))
    told = []
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: prepare(progress=lambda task, *_: told.append(task)), range(2))
    assert first == second
    assert told.count("tales: already prepared") == 1


# ---------------------------------------------------------------- faults


def test_all_is_on_the_disk_before_its_name_says_so(three_parts, tmp_path, prepare, folder, monkeypatch):
    synced, named = set(), []
    fsync, rename = os.fsync, Path.rename

    def noting(handle):
        fsync(handle)
        status = os.fstat(handle)
        synced.add((status.st_ino, status.st_mtime_ns))

    def checking(path, target):
        if path.is_dir():  # names that stand for a whole
            found = {each: each.stat() for each in (path, *path.rglob("*"))}
            names = [each for each, status in found.items() if (status.st_ino, status.st_mtime_ns) not in synced]
            named.append((target.name.partition("@")[0], names))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr(Path, "rename", checking)
    manifest = prepare()
    assert named == [(part.folder, []) for part in manifest.parts] + [("tales", [])]
    assert folder.parent.stat().st_ino in {inode for inode, _ in synced}


def test_a_process_that_is_killed_in_the_middle_is_told_of_in_one_sentence(
    three_parts, prepare, monkeypatch, forked_workers
):
    monkeypatch.setattr(pack, "read_documents", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(TinyllamaError, match="a process that prepared corpora.tales was killed.*goes on"):
        prepare(processes=2)
