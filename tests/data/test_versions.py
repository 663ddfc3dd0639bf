"""Versions of a corpus: a new one leaves the old ones, and whoever reads them, as they were."""

import os
from dataclasses import replace

import numpy as np
import pytest

from tests.data.preparing import SEQ_LEN, contents, listed, parts, write
from tinyllama.data import prepared
from tinyllama.data.inventory import corpus_folders, pinned, take_inventory
from tinyllama.data.loader import train_loader
from tinyllama.data.manifest import TRAIN, read_manifest
from tinyllama.data.prepare import missing_parts
from tinyllama.data.recipe import lay_out
from tinyllama.data.versions import corpus_versions, version_folder, version_name
from tinyllama.errors import ConfigError
from tinyllama.planning.mixture import Mixture
from tinyllama.planning.order import SampleOrder
from tinyllama.world import World


@pytest.fixture
def appended(three_parts, tmp_path, prepare, folder, sentences):
    """Prepared, and prepared again once a file was added: the two manifests, and what the old version held before."""
    old = prepare()
    before = contents(folder)
    made = parts(tmp_path / "data")
    write(tmp_path, sentences(70, seed=3), "3.jsonl")
    new = prepare()
    return old, new, before, made


@pytest.fixture
def config(compose, tmp_path, corpus, tokenizer):
    """config(version=...) is a run's configuration with the test's corpus."""
    [base] = compose("+scale=demo", f"paths.data={tmp_path / 'data'}")
    model, packing = replace(base.model, seq_len=SEQ_LEN), replace(base.packing, seq_len=SEQ_LEN)
    return lambda **settings: replace(
        base, model=model, packing=packing, tokenizer=tokenizer, corpora={"tales": corpus(**settings)}
    )


def test_a_file_that_is_added_makes_its_part_and_leaves_the_old_version_as_it_was(appended, tmp_path, folder):
    old, new, before, made = appended
    assert made.items() < parts(tmp_path / "data").items()
    assert len(parts(tmp_path / "data")) == 4
    assert new.documents == old.documents + 70
    assert folder.readlink().name == version_name("tales", new.fingerprint)
    assert contents(folder.with_name(version_name("tales", old.fingerprint))) == before


def test_the_new_version_is_that_of_preparing_all_anew(appended, tmp_path, prepare, folder):
    assert prepare(data=tmp_path / "fresh") == appended[1]
    assert contents(tmp_path / "fresh" / folder.relative_to(tmp_path / "data")) == contents(folder)


def test_versions_share_the_bytes_of_their_parts(appended, folder):
    old, new, *_ = appended
    inodes = [
        {path.stat().st_ino for path in folder.with_name(version_name("tales", manifest.fingerprint)).rglob("*.mds")}
        for manifest in (old, new)
    ]
    shared = sum(part.shards["train"] + part.shards["validation"] for part in old.parts)
    assert len(inodes[0] & inodes[1]) == shared >= 6


def test_a_file_that_is_added_in_the_middle_makes_its_part_alone(three_parts, tmp_path, prepare, folder, sentences):
    prepare()
    made = parts(tmp_path / "data")
    write(tmp_path, sentences(70, seed=3), "0b.jsonl")
    new = prepare()
    assert made.items() < parts(tmp_path / "data").items()
    assert len(parts(tmp_path / "data")) == 4
    assert [part.folder in made for part in new.parts] == [True, False, True, True]


def test_when_the_file_is_removed_again_the_old_version_is_the_latest_and_nothing_is_made(
    appended, tmp_path, prepare, folder, corpus, tokenizer, monkeypatch
):
    old, new, before, _ = appended
    everything = listed(folder.parent)
    (tmp_path / "raw" / "3.jsonl").unlink()
    assert missing_parts(lay_out(corpus(), tokenizer, SEQ_LEN, tmp_path / "data")) == []
    monkeypatch.setattr(prepared, "fetched", None)  # nothing is read
    assert prepare() == old
    assert contents(folder) == before
    assert [name.partition(" ")[0] for name in listed(folder.parent)] == [name.partition(" ")[0] for name in everything]
    assert read_manifest(folder.with_name(version_name("tales", new.fingerprint))) == new


def test_a_prepared_corpus_is_left_alone_even_when_its_raw_files_were_written_again(
    three_parts, tmp_path, prepare, folder, monkeypatch
):
    manifest = prepare()
    before = {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*")}
    os.utime(tmp_path / "raw" / "1.jsonl", (1, 1))
    told, read, fetch = [], [], prepared.fetched
    monkeypatch.setattr(prepared, "fetched", lambda file, scratch: read.append(file.path) or fetch(file, scratch))
    assert prepare(progress=lambda task, *_: told.append(task)) == manifest
    assert "tales: already prepared" in told
    assert read == [str(tmp_path / "raw" / "1.jsonl")]  # the others are known by size and time
    assert {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*") if path.suffix != ".lock"} == {
        path: time for path, time in before.items() if path.suffix != ".lock"
    }


def test_another_recipe_makes_another_version(three_parts, prepare, folder):
    first = prepare()
    second = prepare(validation_fraction=0.2)
    assert second.validation.documents > first.validation.documents
    assert read_manifest(folder) == second
    assert listed(folder.parent)[1:] == [
        ".tales.lock",
        f"tales -> {version_name('tales', second.fingerprint)}",
        *sorted(version_name("tales", manifest.fingerprint) for manifest in (first, second)),
    ]


def test_the_same_samples_told_of_otherwise_take_the_place_of_the_version(tmp_path, prepare, folder, sentences):
    write(tmp_path, sentences(100))
    first = prepare()
    second = prepare(source_field="text")
    assert second.fingerprint == first.fingerprint
    assert len(second.source_sets) == 100
    assert read_manifest(folder) == second
    assert len(listed(folder.parent)) == 4


# ---------------------------------------------------------------- reading them


def test_a_configuration_reads_the_latest_version_or_the_one_that_it_names(appended, config, tmp_path, tokenizer):
    old, new, *_ = appended
    assert read_manifest(version_folder(config(), "tales")) == new
    for digits in (5, 12, 20, 64):
        assert read_manifest(version_folder(config(version=old.fingerprint[:digits]), "tales")) == old
    found = corpus_versions(tmp_path / "data", tokenizer, SEQ_LEN, "tales")
    assert list(found) == [old.fingerprint, new.fingerprint]
    assert read_manifest(found[old.fingerprint]) == old


def test_a_version_that_is_not_there_or_not_one_alone_is_refused_with_a_list_of_those_that_are(
    appended, config, folder
):
    old, new, *_ = appended
    with pytest.raises(ConfigError, match=r"corpora.tales.version=nosuch is the beginning of no fingerprint") as told:
        version_folder(config(version="nosuch"), "tales")
    with pytest.raises(ConfigError, match="more than one fingerprint"):
        version_folder(config(version=""), "tales")
    with pytest.raises(ConfigError, match="the beginning of no fingerprint"):
        version_folder(config(version=old.fingerprint[:20] + "x"), "tales")
    assert f"{old.fingerprint[:12]} (20" in str(told.value) and "210 documents), " in str(told.value)
    assert f"{new.fingerprint[:12]} (20" in str(told.value) and "280 documents, the latest)" in str(told.value)


def test_of_a_corpus_that_is_not_prepared_no_version_can_be_named(config):
    with pytest.raises(ConfigError, match="prepare the corpus, or leave the setting out"):
        version_folder(config(version="abc"), "tales")


def test_what_was_planned_is_read_whichever_version_is_the_latest_by_then(appended, config):
    old, new, *_ = appended
    inventory = take_inventory([config(version=old.fingerprint[:8])])
    assert inventory.corpora["tales"].shard_samples == old.train.shard_samples
    [path] = corpus_folders(config(), inventory.corpora).values()
    assert read_manifest(path) == old


def test_a_run_on_the_old_version_reads_the_same_samples_after_the_append(
    three_parts, tmp_path, prepare, sentences, config
):
    def read():
        corpora = take_inventory([config(version=version)]).corpora
        order = SampleOrder(
            Mixture(("tales",), [(0, {"tales": 1.0})]), {"tales": corpora["tales"].shard_samples}, seed=1
        )
        folders = {name: path / TRAIN for name, path in corpus_folders(config(version=version), corpora).items()}
        batches = train_loader(order, folders, micro_batch=4, world=World(), start=0, stop=40, run_id="run")
        return np.concatenate([batch.tokens.numpy() for batch in batches])

    version = prepare().fingerprint
    before = read()
    write(tmp_path, sentences(70, seed=3), "0b.jsonl")
    assert prepare().fingerprint != version
    assert np.array_equal(read(), before)


def test_a_pinned_configuration_keeps_to_the_version_of_its_time(three_parts, tmp_path, prepare, sentences, config):
    assert pinned(config()) == config()  # nothing is prepared
    old = prepare()
    kept = pinned(config())
    write(tmp_path, sentences(70, seed=3), "3.jsonl")
    prepare()
    assert kept == config(version=old.fingerprint)
    assert read_manifest(version_folder(kept, "tales")) == old


def test_marks_of_documents_that_differ_from_the_configuration_are_refused(three_parts, prepare, config, tokenizer):
    prepare()
    other = replace(config(), tokenizer=replace(tokenizer, add_bos=True))
    with pytest.raises(ConfigError, match="tokenizer.add_bos=true, but corpus tales was prepared with false"):
        take_inventory([other])
