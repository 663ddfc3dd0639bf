import json
import os
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllama.data import parts
from tinyllama.data import prepare as prepare_module
from tinyllama.data.manifest import corpus_folder, read_manifest
from tinyllama.data.mds import LocalDataset
from tinyllama.data.parts import held_out
from tinyllama.data.prepare import prepare_corpus
from tinyllama.data.tokenizer import EOS, Tokenizer
from tinyllama.errors import ConfigError, DamageError, TinyllamaError

SEQ_LEN = 32


@pytest.fixture
def prepare(tmp_path, corpus, tokenizer):
    """prepare(validation_fraction=...) prepares the test's corpus below its folder, in this process."""

    def run(data=None, tokenizer=tokenizer, processes=1, progress=lambda *_: None, **settings):
        return prepare_corpus(corpus(**settings), tokenizer, SEQ_LEN, data or tmp_path / "data", progress, processes)

    return run


@pytest.fixture
def folder(tmp_path, tokenizer):
    return corpus_folder(tmp_path / "data", tokenizer, SEQ_LEN, "tales")


def write(tmp_path, texts, name="a.jsonl"):
    (tmp_path / "raw").mkdir(exist_ok=True)
    (tmp_path / "raw" / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.fixture
def three_parts(tmp_path, sentences, monkeypatch):
    """Three raw files that are parts of their own."""
    monkeypatch.setattr(parts, "MIN_PART_BYTES", 1)
    for index in range(3):
        write(tmp_path, sentences(70, seed=index), f"{index}.jsonl")


def samples(folder, split):
    stored = LocalDataset(str(folder / split))
    return np.stack([stored[index]["tokens"] for index in range(len(stored))])


def test_the_samples_of_each_split_are_its_documents_in_order_each_with_an_eos(
    tmp_path, prepare, folder, tokenizer, sentences
):
    texts = sentences(200)
    write(tmp_path, texts)
    manifest = prepare()
    model = Tokenizer.load(tokenizer)
    for split, held in (("train", False), ("validation", True)):
        documents = [text for text in texts if held_out(text, 0.1) is held]
        stream = list(chain.from_iterable([*model.encode(text), EOS] for text in documents))
        stored = samples(folder, split)
        assert stored.shape == (getattr(manifest, split).samples, SEQ_LEN + 1)
        assert [stored[0, 0], *stored[:, 1:].ravel()] == stream[: len(stored) * SEQ_LEN + 1]
        assert getattr(manifest, split).documents == len(documents)


def test_the_counts_of_the_manifest_add_up(tmp_path, prepare, folder, tokenizer, sentences):
    texts = sentences(200)
    write(tmp_path, [*texts, ""])
    manifest = prepare()
    encoded = Tokenizer.load(tokenizer).encode_documents(texts)
    assert (manifest.documents, manifest.skipped) == (200, {"empty": 1})
    assert manifest.characters == sum(map(len, texts))
    assert manifest.tokens == sum(map(len, encoded))
    first_tokens = 2  # of the two splits, which nothing predicts
    assert (
        manifest.tokens == first_tokens + manifest.train.tokens + manifest.validation.tokens + manifest.left_over_tokens
    )
    assert manifest.train.tokens == manifest.train.samples * SEQ_LEN
    assert sum(manifest.train.shard_samples) == manifest.train.samples == len(samples(folder, "train"))
    assert manifest.bytes == sum(path.stat().st_size for path in folder.rglob("*.mds"))
    assert read_manifest(folder) == manifest


def test_the_result_does_not_depend_on_the_number_of_processes(three_parts, tmp_path, prepare):
    one = prepare(data=tmp_path / "one", processes=1)
    three = prepare(data=tmp_path / "three", processes=3)
    assert one == three
    files = [
        sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*.mds"))
        for name in ("one", "three")
    ]
    assert files[0] == files[1] != []


def test_what_parts_leave_over_is_packed_too(three_parts, tmp_path, prepare, folder):
    manifest = prepare()
    assert len(list(parts._cut(manifest.sources))) == 3
    assert manifest.left_over_tokens < 2 * (SEQ_LEN + 1)
    end_marks = sum(int((samples(folder, split) == EOS)[:, 1:].sum()) for split in ("train", "validation"))
    assert 0 <= manifest.documents - end_marks <= 2 * 3  # those left over from each part


def test_no_token_of_any_part_is_predicted_twice(three_parts, tmp_path, prepare):
    manifest = prepare()
    predicted = manifest.train.tokens + manifest.validation.tokens
    contexts = manifest.tokens - predicted - manifest.left_over_tokens
    assert 2 <= contexts <= 2 * (3 + 1)  # the first token of each split of each part, and of what they leave over


def test_the_fingerprint_is_of_the_content_and_not_of_the_place(tmp_path, prepare, tokenizer, corpus, sentences):
    write(tmp_path, sentences(200))
    here = prepare()
    shutil.copytree(tmp_path / "raw", tmp_path / "elsewhere")
    there = prepare(data=tmp_path / "there", files=[f"{tmp_path}/elsewhere/*.jsonl"])
    assert there.fingerprint == here.fingerprint
    with_bos = prepare(data=tmp_path / "bos", tokenizer=replace(tokenizer, add_bos=True))
    write(tmp_path, sentences(200, seed=5))
    other_text = prepare()
    assert len({here.fingerprint, with_bos.fingerprint, other_text.fingerprint}) == 3


def test_a_prepared_corpus_is_left_alone_even_when_its_raw_files_were_written_again(
    tmp_path, prepare, folder, sentences
):
    write(tmp_path, sentences(200))
    manifest = prepare()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    os.utime(tmp_path / "raw" / "a.jsonl", (1, 1))
    told = []
    assert prepare(progress=lambda task, *_: told.append(task)) == manifest
    assert "tales: already prepared" in told
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_changed_inputs_replace_the_prepared_corpus_and_leave_nothing_behind(tmp_path, prepare, folder, sentences):
    write(tmp_path, sentences(200))
    first = prepare()
    second = prepare(validation_fraction=0.2)
    assert second.validation.documents > first.validation.documents
    assert read_manifest(folder) == second
    assert sorted(path.name for path in folder.parent.iterdir()) == [".tales.lock", "tales"]
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "train", "validation"]


def test_an_interrupted_preparation_goes_on_with_the_missing_parts(three_parts, tmp_path, prepare, folder, monkeypatch):
    whole = prepare(data=tmp_path / "whole")
    made, make = [], parts._make_part

    def interrupted(recipe, paths, part):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(part.name)
        return make(recipe, paths, part)

    monkeypatch.setattr(parts, "_make_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare()
    assert read_manifest(folder) is None
    monkeypatch.setattr(parts, "_make_part", lambda *job: made.append(job[2].name) or make(*job))
    assert prepare() == whole
    assert made == ["part-0000", "part-0001", "part-0002"]


def test_two_preparations_at_once_do_the_work_once(tmp_path, prepare, sentences):
    write(tmp_path, sentences(200))
    told = []
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: prepare(progress=lambda task, *_: told.append(task)), range(2))
    assert first == second
    assert told.count("tales: already prepared") == 1


@given(text=st.text(), low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_larger_validation_split_holds_all_of_a_smaller_one(text, low, high):
    low, high = sorted((low, high))
    assert held_out(text, high) or not held_out(text, low)
    assert not held_out(text, 0.0)


def test_the_validation_split_has_about_its_share_whatever_the_order(sentences):
    texts = sentences(20_000)
    held = {text for text in texts if held_out(text, 0.1)}
    assert 1800 < len(held) < 2200
    assert held == {text for text in reversed(texts) if held_out(text, 0.1)}


def test_a_corpus_below_one_sample_is_refused(tmp_path, prepare, folder):
    write(tmp_path, ["a few words"])
    with pytest.raises(ConfigError, match=r"corpora.tales.files hold 1 documents .* fewer than one sample of 33"):
        prepare(validation_fraction=0.0)
    assert not folder.exists()


def test_filters_that_leave_nothing_are_named(tmp_path, prepare, sentences):
    write(tmp_path, sentences(200))
    with pytest.raises(ConfigError, match=r"200 rows: text=.* is not kept|1 rows: text=.* is not kept"):
        prepare(keep={"text": ["nothing like it"]})


def test_a_validation_split_below_one_sample_is_refused(tmp_path, prepare, sentences):
    write(tmp_path, sentences(200))
    with pytest.raises(
        ConfigError, match=r"corpora.tales.validation_fraction=1e-09 holds out 0 of 200 documents.*raise it"
    ):
        prepare(validation_fraction=1e-9)


def test_a_corpus_can_do_without_validation(tmp_path, prepare, sentences):
    write(tmp_path, sentences(200))
    manifest = prepare(validation_fraction=0.0)
    assert (manifest.validation.documents, manifest.validation.samples) == (0, 0)
    assert manifest.train.documents == 200


def test_a_bad_line_ends_the_preparation_with_its_place_from_another_process_too(
    three_parts, tmp_path, prepare, folder
):
    with (tmp_path / "raw" / "1.jsonl").open("a") as file:
        file.write("{broken\n")
    with pytest.raises(ConfigError, match="1.jsonl:71 is no JSON"):
        prepare(processes=2)
    assert not folder.exists()


@pytest.mark.parametrize("content", ["{", '{"corpus": "tales"}', "[]"])
def test_a_damaged_manifest_says_so(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DamageError, match="manifest.json is .*damaged"):
        read_manifest(tmp_path)


def test_no_manifest_is_no_error(tmp_path):
    assert read_manifest(tmp_path / "none") is None


# ---------------------------------------------------------------- faults


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_manifest(whole, _):
    (whole / "manifest.json").write_text("{")
    die()


def die_at(stage):
    """Have this process killed in the middle of a preparation."""
    make, rename = parts._make_part, Path.rename
    match stage:
        case "the third part":
            parts._make_part = lambda *job: die() if job[2].name == "part-0002" else make(*job)
        case "the result of a part":
            parts.sync_tree = die
        case "joining":
            prepare_module.fingerprint = die
        case "the manifest":
            prepare_module.write_manifest = half_a_manifest
        case "swapping":
            Path.rename = lambda path, target: die() if path.name == "whole" else rename(path, target)
        case "clearing away":
            prepare_module.sync = lambda path: die() if (path / "tales").exists() else None


STAGES = ["the third part", "the result of a part", "joining", "the manifest", "swapping", "clearing away"]


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_a_preparation_that_was_killed_anywhere_goes_on_to_the_same_corpus(
    three_parts, tmp_path, prepare, folder, stage, known
):
    whole = prepare(data=tmp_path / "whole")
    if known:  # then it was to be replaced
        prepare(validation_fraction=0.2)

    def start() -> None:
        die_at(stage)
        prepare()

    victim = get_context("fork").Process(target=start)
    victim.start()
    victim.join()
    assert victim.exitcode == -signal.SIGKILL
    assert prepare() == whole
    assert sorted(path.name for path in folder.parent.iterdir()) == [".tales.lock", "tales"]
    expected = tmp_path / "whole" / folder.relative_to(tmp_path / "data")
    for split in ("train", "validation"):
        assert np.array_equal(samples(folder, split), samples(expected, split))


def test_all_is_on_the_disk_before_the_corpus_gets_its_name(three_parts, tmp_path, prepare, folder, monkeypatch):
    synced, swapped = set(), []
    fsync, rename = os.fsync, Path.rename

    def noting(handle):
        fsync(handle)
        status = os.fstat(handle)
        synced.add((status.st_ino, status.st_mtime_ns))

    def checking(path, target):
        if target in (folder, path.with_name("part.json")):  # names that stand for a whole
            root = path if path.is_dir() else path.parent
            found = {each: each.stat() for each in (root, *root.rglob("*"))}
            names = [each for each, status in found.items() if (status.st_ino, status.st_mtime_ns) not in synced]
            swapped.append((target.name, [each for each in names if path.is_dir() or each != root]))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr(Path, "rename", checking)
    prepare()
    assert swapped == [*[("part.json", [])] * 3, ("tales", [])]
    assert (folder.parent.stat().st_ino) in {inode for inode, _ in synced}


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True).returncode:
        pytest.skip("mounting takes root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_disk_that_fills_up_is_named_and_once_there_is_room_the_preparation_goes_on(
    three_parts, tmp_path, prepare, small_disk, processes
):
    whole = prepare(data=tmp_path / "whole")
    with pytest.raises(
        DamageError, match=rf"paths.data={small_disk} has no room left for corpora.tales .*free space there"
    ):
        prepare(data=small_disk, processes=processes)
    assert list(small_disk.rglob("part.json"))
    subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
    assert prepare(data=small_disk) == whole


def test_a_process_that_is_killed_in_the_middle_is_told_of_in_one_sentence(three_parts, prepare, monkeypatch):
    def killed(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    fork = get_context("fork")  # inherits what is replaced here
    monkeypatch.setattr(fork, "set_forkserver_preload", lambda _: None)
    monkeypatch.setattr(parts.multiprocessing, "get_context", lambda _: fork)
    monkeypatch.setattr(parts, "read_documents", killed)
    with pytest.raises(TinyllamaError, match="a process that prepared corpora.tales was killed.*goes on"):
        prepare(processes=2)
