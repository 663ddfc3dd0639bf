"""What a prepared corpus holds, and what is refused."""

import pickle
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from tests.data.preparing import SEQ_LEN, contents, parts, samples, write
from tinyllama.data.manifest import read_manifest
from tinyllama.data.pack import held_out
from tinyllama.data.tokenizer import EOS, Tokenizer
from tinyllama.errors import ConfigError, DamageError


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
    texts = [*sentences(199), "with a NUL \0 in it"]
    write(tmp_path, [*texts, ""])
    manifest = prepare()
    encoded = Tokenizer.load(tokenizer).encode_documents(texts)
    assert (manifest.documents, manifest.skipped, manifest.noted) == (200, {"empty": 1}, {"holds NUL": 1})
    assert manifest.source_sets == {"tales": {"documents": 200, "tokens": manifest.tokens}}
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


def test_a_sample_is_found_by_what_the_manifest_tells_of_the_parts(three_parts, prepare, folder, tokenizer):
    manifest = prepare()
    model = Tokenizer.load(tokenizer)
    files = iter(manifest.sources)
    for split, found in manifest.splits.items():
        shards = iter(np.split(samples(folder, split), np.cumsum(found.shard_samples)[:-1]))
        left_over = []
        files = iter(manifest.sources)
        for part in manifest.parts:
            [path] = [next(files).path for _ in range(part.files)]
            texts = [eval(line)["text"] for line in Path(path).read_text().splitlines()]
            stream = [*chain.from_iterable([*model.encode(text), EOS] for text in texts
                      if held_out(text, 0.1) is (split == "validation"))]  # fmt: skip
            own = list(chain.from_iterable(next(shards) for _ in range(part.shards[split])))
            assert np.array_equal([row[:-1] for row in own], np.reshape(stream[: len(own) * SEQ_LEN], (-1, SEQ_LEN)))
            left_over += stream[len(stream) - part.left_over[split] :]
        last = list(chain.from_iterable(shards))
        assert [token for row in last for token in row[:-1]] == left_over[: len(last) * SEQ_LEN]


def test_what_parts_leave_over_is_packed_too(three_parts, prepare, folder):
    manifest = prepare()
    assert len(manifest.parts) == 3
    assert manifest.left_over_tokens < 2 * (SEQ_LEN + 1)
    end_marks = sum(int((samples(folder, split) == EOS)[:, 1:].sum()) for split in ("train", "validation"))
    assert 0 <= manifest.documents - end_marks <= 2 * 3  # those left over from each part


def test_no_token_of_any_part_is_predicted_twice(three_parts, prepare):
    manifest = prepare()
    predicted = manifest.train.tokens + manifest.validation.tokens
    contexts = manifest.tokens - predicted - manifest.left_over_tokens
    assert 2 <= contexts <= 2 * (3 + 1)  # the first token of each split of each part, and of what they leave over


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_number_of_processes(three_parts, tmp_path, prepare, folder):
    for number in (1, 2):
        prepare(data=tmp_path / str(number), processes=number)
    one, two = (tmp_path / str(number) / folder.relative_to(tmp_path / "data") for number in (1, 2))
    assert contents(one) == contents(two)
    assert one.readlink() == two.readlink()


def test_the_fingerprint_is_of_the_content_and_not_of_the_place(tmp_path, prepare, tokenizer, sentences):
    write(tmp_path, sentences(200))
    here = prepare()
    shutil.copytree(tmp_path / "raw", tmp_path / "elsewhere")
    there = prepare(data=tmp_path / "there", files=[f"{tmp_path}/elsewhere/*.jsonl"])
    assert there.fingerprint == here.fingerprint
    with_bos = prepare(data=tmp_path / "bos", tokenizer=replace(tokenizer, add_bos=True))
    write(tmp_path, sentences(200, seed=5))
    other_text = prepare()
    assert len({here.fingerprint, with_bos.fingerprint, other_text.fingerprint}) == 3


# ---------------------------------------------------------------- too little, or nothing that can be used


def test_a_corpus_below_one_sample_is_refused(tmp_path, prepare, folder):
    write(tmp_path, ["a few words"])
    with pytest.raises(
        ConfigError,
        match=r"corpora.tales.files hold 1 document to train on .* fewer than one sample of 33.*packing.seq_len",
    ):
        prepare(validation_fraction=0.0)
    assert not folder.exists()


def test_a_corpus_without_a_document_is_refused(tmp_path, prepare, folder):
    write(tmp_path, ["", ""])
    with pytest.raises(ConfigError, match=r"hold 0 documents to train on and 0 tokens in all \(2 rows: empty\)"):
        prepare()
    assert not folder.exists()


def test_a_corpus_of_three_documents_is_prepared_or_told_what_it_lacks(tmp_path, prepare, sentences):
    write(tmp_path, sentences(3))
    assert prepare(validation_fraction=0.0).train.documents == 3
    with pytest.raises(ConfigError, match=r"validation_fraction=1e-06 holds out 0 of 3 documents.*set it to 0"):
        prepare(validation_fraction=1e-6)


def test_a_corpus_of_which_all_is_held_out_is_told_so(tmp_path, prepare, sentences):
    write(tmp_path, sentences(50))
    with pytest.raises(ConfigError, match=r"hold 0 documents to train on .*lower validation_fraction"):
        prepare(validation_fraction=1.0)


def test_filters_that_leave_nothing_are_named(tmp_path, prepare, sentences):
    write(tmp_path, sentences(200))
    with pytest.raises(ConfigError, match=r"1 rows: text=.* is not kept"):
        prepare(keep={"text": ["nothing like it"]})


def test_a_corpus_can_do_without_validation(tmp_path, prepare, sentences):
    write(tmp_path, sentences(200))
    manifest = prepare(validation_fraction=0.0)
    assert (manifest.validation.documents, manifest.validation.samples) == (0, 0)
    assert manifest.train.documents == 200


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_all_bad_files_are_told_at_once_and_the_other_parts_are_made(three_parts, tmp_path, prepare, folder, processes):
    for name in ("0.jsonl", "2.jsonl"):
        with (tmp_path / "raw" / name).open("a") as file:
            file.write("{broken\n")
    with pytest.raises(ConfigError) as told:
        prepare(processes=processes)
    assert "0.jsonl:71" in str(told.value) and "2.jsonl:71" in str(told.value)
    assert not folder.exists()
    made = parts(tmp_path / "data")
    assert len(made) == 1
    for name in ("0.jsonl", "2.jsonl"):
        path = tmp_path / "raw" / name
        path.write_text(path.read_text().removesuffix("{broken\n"))
    prepare()
    assert made.items() < parts(tmp_path / "data").items()


# ---------------------------------------------------------------- the disk, and processes


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True).returncode:
        pytest.skip("mounting takes root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_disk_that_fills_up_is_named_and_once_there_is_room_the_preparation_goes_on(
    three_parts, tmp_path, prepare, small_disk, processes
):
    whole = prepare(data=tmp_path / "whole")
    with pytest.raises(
        DamageError, match=rf"paths.data={small_disk} has no room left for corpora.tales .*free space there"
    ):
        prepare(data=small_disk, processes=processes)
    made = parts(small_disk)
    assert made
    subprocess.run(["mount", "-o", "remount,size=2m", small_disk], check=True)
    assert prepare(data=small_disk) == whole
    assert made.items() < parts(small_disk).items()


def processes_in(session):
    """How many of a session there are that have not ended."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            state, _, _, of, *_ = path.read_text().rpartition(")")[2].split()
            count += int(of) == session and state != "Z"
    return count


def until(happened):
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_processes_of_a_preparation_end_when_it_is_killed(three_parts, tmp_path, corpus, tokenizer):
    for path in (tmp_path / "raw").iterdir():  # more work than can be done before it is killed
        path.write_text(path.read_text() * 1000)
    script = (
        "import pickle, sys; from tinyllama.config.schema import PreparationConfig; "
        "from tinyllama.data.prepare import prepare_corpus; "
        "prepare_corpus(*pickle.load(sys.stdin.buffer), preparation=PreparationConfig(processes=2))"
    )
    victim = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, start_new_session=True)
    with victim.stdin:
        pickle.dump((corpus(), tokenizer, SEQ_LEN, tmp_path / "data"), victim.stdin)
    until(lambda: len(list((tmp_path / "data").rglob(".*-parts/.[!v]*"))) == 2)
    assert processes_in(victim.pid) > 2
    victim.kill()
    victim.wait()
    until(lambda: not processes_in(victim.pid))
    assert not parts(tmp_path / "data")
