"""What becomes of parts, and of versions that lose files."""

import errno
import json
import os
import shutil

import pytest

from tests.data.preparing import SEQ_LEN, contents, listed, parts, write
from tinyllama.data.manifest import read_manifest
from tinyllama.data.prepare import missing_parts
from tinyllama.data.recipe import lay_out
from tinyllama.data.shards import require_fingerprint
from tinyllama.data.versions import corpus_versions, version_name
from tinyllama.errors import DamageError


def flip(path):
    """Alter a byte, by every name that the file has."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))


@pytest.fixture
def work(three_parts, tmp_path, corpus, tokenizer):
    """work() lists the raw files anew."""
    return lambda: lay_out(corpus(), tokenizer, SEQ_LEN, tmp_path / "data")


def test_a_damaged_shard_that_is_deleted_is_made_anew_with_its_part_alone(work, tmp_path, prepare, folder):
    manifest = prepare()
    whole, made = contents(folder), parts(tmp_path / "data")
    shard = folder / "train" / f"shard.{manifest.parts[0].shards['train']:06d}.mds"  # the first of the second part
    flip(shard)
    shard.unlink()
    assert missing_parts(work()) == [1]
    assert prepare() == manifest
    assert contents(folder) == whole
    anew = parts(tmp_path / "data")
    assert anew.keys() == made.keys()
    assert [anew[part.folder] == made[part.folder] for part in manifest.parts] == [True, False, True]


@pytest.mark.parametrize("lost", ["documents/train-0002.parquet", "train/shard.000001.mds"])
def test_a_file_that_is_cut_short_or_missing_is_made_anew(three_parts, prepare, folder, lost):
    manifest = prepare()
    whole = contents(folder)
    if lost.endswith(".mds"):
        os.truncate(folder / lost, 100)
    else:
        (folder / lost).unlink()
    assert prepare() == manifest
    assert contents(folder) == whole


@pytest.mark.parametrize("content", [None, "{"])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_an_index_that_is_gone_or_none_is_written_again_from_parts_that_stay(
    three_parts, tmp_path, prepare, folder, content, split
):
    manifest = prepare()
    whole, made = contents(folder), parts(tmp_path / "data")
    index = folder / split / "index.json"
    index.unlink()  # the parts have indices of their own
    if content is not None:
        index.write_text(content)
    assert prepare() == manifest
    assert contents(folder) == whole
    assert parts(tmp_path / "data") == made


def test_the_last_shard_of_what_parts_left_over_is_packed_again(three_parts, tmp_path, prepare, folder, sentences):
    for index in range(3, 6):
        write(tmp_path, sentences(70, seed=index), f"{index}.jsonl")
    manifest = prepare()
    assert sum(part.shards["train"] for part in manifest.parts) == len(manifest.train.shard_samples) - 1
    whole, made = contents(folder), parts(tmp_path / "data")
    (folder / "train" / f"shard.{len(manifest.train.shard_samples) - 1:06d}.mds").unlink()
    assert prepare() == manifest
    assert contents(folder) == whole
    assert parts(tmp_path / "data") == made


def test_a_version_that_is_deleted_is_gone_for_good_but_for_parts_of_others(
    three_parts, tmp_path, prepare, folder, sentences
):
    old = prepare()
    write(tmp_path, sentences(70, seed=3), "3.jsonl")
    new = prepare()
    shared = {part.folder for part in old.parts}
    made = parts(tmp_path / "data")
    shutil.rmtree(folder.resolve())
    assert not folder.exists() and read_manifest(folder) is None
    assert prepare() == new
    anew = parts(tmp_path / "data")
    assert {name for name, made_as in anew.items() if made[name] == made_as} == shared
    for path in folder.parent.glob("tales@*"):
        shutil.rmtree(path)
    prepare()
    assert not made.items() & parts(tmp_path / "data").items()


def test_the_link_can_be_deleted_without_harm(three_parts, tmp_path, prepare, folder):
    manifest, made = prepare(), parts(tmp_path / "data")
    folder.unlink()
    assert prepare() == manifest
    assert read_manifest(folder) == manifest
    assert parts(tmp_path / "data") == made


def test_the_store_can_be_deleted_without_harm(three_parts, tmp_path, prepare, folder, sentences):
    prepare()
    whole = contents(folder)
    shutil.rmtree(folder.with_name(".tales-parts"))
    prepare()
    assert contents(folder) == whole
    assert not parts(tmp_path / "data")
    write(tmp_path, sentences(70, seed=3), "3.jsonl")
    assert prepare() == prepare(data=tmp_path / "fresh")


def test_where_the_file_system_has_no_hard_links_the_version_is_a_copy(
    three_parts, tmp_path, prepare, folder, monkeypatch
):
    prepare(data=tmp_path / "linked")

    def refuse(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    prepare()
    assert contents(folder) == contents(tmp_path / "linked" / folder.relative_to(tmp_path / "data"))
    assert {path.stat().st_nlink for path in folder.rglob("*.mds")} == {1}


# ---------------------------------------------------------------- what stands in the way


def test_a_folder_in_the_place_of_the_link_becomes_a_version(three_parts, tmp_path, prepare, folder, tokenizer):
    manifest = prepare()
    version = folder.resolve()
    folder.unlink()
    version.rename(folder)  # as a copy that follows links leaves it
    assert list(corpus_versions(tmp_path / "data", tokenizer, SEQ_LEN, "tales").values()) == [folder]
    assert prepare() == manifest
    assert folder.is_symlink()
    assert folder.resolve() == version.resolve()


def test_a_copy_that_followed_the_link_serves_as_it_is_and_is_no_version_of_its_own(
    three_parts, tmp_path, prepare, folder, tokenizer
):
    manifest = prepare()
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    link = tmp_path / "copy" / folder.relative_to(tmp_path / "data")
    assert not link.is_symlink() and read_manifest(link) == manifest
    assert len(corpus_versions(tmp_path / "copy", tokenizer, SEQ_LEN, "tales")) == 1
    assert prepare(data=tmp_path / "copy") == manifest
    assert link.is_symlink() and read_manifest(link) == manifest


def test_a_corpus_of_an_earlier_release_is_told_of_and_stays_beside_the_new_version(
    three_parts, prepare, folder, tokenizer
):
    manifest = prepare()
    version = folder.resolve()
    folder.unlink()
    version.rename(folder)
    fields = json.loads((folder / "manifest.json").read_text())
    for name in ("parts", "noted", "bad_rows", "source_sets", "add_eos", "add_bos"):
        del fields[name]
    fields["fingerprint"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(DamageError, match="written by an earlier release.*prepare the corpus again"):
        read_manifest(folder)
    assert prepare() == manifest
    assert read_manifest(folder) == manifest
    assert [name for name in listed(folder.parent) if "@" in name and "->" not in name] == sorted(
        ["tales@000000000000", version_name("tales", manifest.fingerprint)]
    )


@pytest.mark.parametrize("content", ["{", "[]", None])
def test_a_folder_that_is_no_prepared_corpus_is_not_touched(three_parts, prepare, folder, content):
    folder.mkdir(parents=True)
    if content is not None:
        (folder / "manifest.json").write_text(content)
    with pytest.raises(DamageError, match="stands where the link to the latest version .* move it away"):
        prepare()
    assert [path.name for path in folder.iterdir()] == ["manifest.json"] * (content is not None)


def test_a_version_whose_manifest_is_damaged_is_made_anew(three_parts, tmp_path, prepare, folder):
    manifest = prepare()
    whole = contents(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(DamageError, match="manifest.json is damaged"):
        read_manifest(folder)
    assert prepare() == manifest
    assert contents(folder) == whole


# ---------------------------------------------------------------- the manifest, and the indices that it answers for


@pytest.mark.parametrize("content", ["{", '{"corpus": "tales"}', "[]"])
def test_a_damaged_manifest_says_so(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DamageError, match="manifest.json is .*damaged"):
        read_manifest(tmp_path)


def test_no_manifest_is_no_error(tmp_path):
    assert read_manifest(tmp_path / "none") is None


@pytest.mark.parametrize("split", ["train", "validation"])
def test_an_index_that_is_not_the_one_of_the_fingerprint_is_damage(three_parts, prepare, folder, split):
    prepare()
    require_fingerprint(folder)
    index = folder / split / "index.json"
    fields = json.loads(index.read_text())
    fields["shards"][0]["raw_data"]["hashes"]["sha256"] = "0" * 64
    index.write_text(json.dumps(fields))
    with pytest.raises(
        DamageError, match=r"train/index.json and validation/index.json of corpora.tales .* fingerprint"
    ):
        require_fingerprint(folder)
    index.write_text("{")
    with pytest.raises(DamageError, match="index.json of corpora.tales is damaged"):
        require_fingerprint(folder)
