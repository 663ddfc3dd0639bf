"""Whatever is wrong with a prepared corpus is found and named, also when all of its digests fit."""

import json
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest

from tests.data.preparing import SEQ_LEN, write
from tinyllama.data import recipe
from tinyllama.data.manifest import documents_path, fingerprint, read_manifest, write_manifest
from tinyllama.data.reporter import silent
from tinyllama.data.shards import read_shards
from tinyllama.data.soundness import samples_of
from tinyllama.data.tokenizer import BOS, EOS, UNK, Tokenizer, train_tokenizer
from tinyllama.proof.corpora import examine_corpus

PARTS = 8
UINT16 = np.dtype(np.uint16)


@pytest.fixture
def version(three_parts, tmp_path, prepare, folder, sentences, monkeypatch):
    """The folder of a version of three parts with several shards each, and of a few that make up more left over."""
    monkeypatch.setattr(recipe, "MIN_SHARD_BYTES", 1)
    for index in range(3, PARTS):
        write(tmp_path, sentences(9, seed=index), f"{index}.jsonl")
    prepare()
    return folder.resolve()


@pytest.fixture
def check(version, corpus, tokenizer):
    """check() -> what was found wrong, by the name of the check; or all details of a version that is sound."""

    def run(wrong=True, tokenizer=tokenizer):
        manifest = read_manifest(version)
        checks = examine_corpus(version, manifest, corpus(), Tokenizer.load(tokenizer), lambda *_: silent("", 0, 0))
        return {each.name: each.detail for each in checks if each.ok != wrong}

    return run


def forge(version, shard, change, split="train"):
    """Change the samples [n, SEQ_LEN + 1] of a shard, and have all digests fit, as a faulty preparation would."""
    path = version / split / f"shard.{shard:06d}.mds"
    content = bytearray(path.read_bytes())
    samples = samples_of(bytes(content), SEQ_LEN, UINT16).copy()
    change(samples)
    stride = (len(content) - int.from_bytes(content[4:8], "little")) // len(samples)
    for number, sample in enumerate(samples):
        end = len(content) - (len(samples) - 1 - number) * stride
        content[end - sample.nbytes : end] = sample.tobytes()
    path.write_bytes(content)
    index = version / split / "index.json"
    fields = json.loads(index.read_text())
    fields["shards"][shard]["raw_data"]["hashes"]["sha256"] = sha256(content).hexdigest()
    index.write_text(json.dumps(fields))
    manifest = read_manifest(version)
    described = {split: read_shards(version / split) for split in manifest.splits}
    how = {name: getattr(manifest, name) for name in ("tokenizer_digest", "add_eos", "add_bos", "seq_len")}
    write_manifest(version, replace(manifest, fingerprint=fingerprint(described, **how)))


def put(row, column, token):
    """A change of one token; of two, where it is the one in which samples overlap."""

    def change(samples):
        samples[row, column] = token

    return change


def a_text_token(version, shard=0):
    """A sample and a place in it, away from its borders, where a document goes on."""
    samples = samples_of((version / "train" / f"shard.{shard:06d}.mds").read_bytes(), SEQ_LEN, UINT16)
    row, column = np.argwhere((samples[:, 1:-1] != EOS) & (samples[:, 1:-1] != BOS))[-1]
    return int(row), int(column) + 1


def test_a_sound_version_passes_and_tells_what_was_looked_at(version, check):
    assert check() == {}
    found, manifest = check(wrong=False), read_manifest(version)
    assert len(manifest.parts) == PARTS and manifest.parts[0].shards["train"] > 1
    tokens = manifest.tokens - manifest.left_over_tokens
    assert found["document borders"].startswith(f"{manifest.documents:,} documents, with EOS at the borders of each")
    assert found["vocabulary"] == f"{tokens:,} tokens in samples, all of the vocabulary"
    assert found["raw files"].startswith(f"{PARTS} of {PARTS} as they were")


@pytest.mark.parametrize("borders", [{"add_bos": True}, {"add_eos": False}, {"add_bos": True, "add_eos": False}])
def test_documents_may_begin_with_bos_or_have_no_borders_at_all(
    three_parts, prepare, folder, corpus, tokenizer, borders
):
    config = replace(tokenizer, **borders)
    manifest = prepare(tokenizer=config)
    checks = examine_corpus(folder.resolve(), manifest, corpus(), Tokenizer.load(config), lambda *_: None)
    assert [each.detail for each in checks if not each.ok] == []


def test_an_altered_byte_is_named_by_its_shard(version, check):
    path = version / "train" / "shard.000001.mds"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert check()["shards"].startswith("train/shard.000001.mds has sha256 ")


def test_missing_and_shortened_shards_are_named_and_the_others_are_read(version, check):
    (version / "validation" / "shard.000000.mds").unlink()
    path = version / "train" / "shard.000001.mds"
    path.write_bytes(path.read_bytes()[:-3])
    found = check()
    assert "validation/shard.000000.mds cannot be read (No such file or directory)" in found["shards"]
    assert "train/shard.000001.mds holds " in found["shards"]
    assert list(found) == ["shards"]


@pytest.mark.parametrize(
    "token, name, words",
    [(EOS, "document borders", "is EOS in the midst of a document"), (BOS, "document borders", "is BOS in the midst"),
     (UNK, "special tokens", "is 0"), (320, "vocabulary", "is 320"), (65535, "vocabulary", "is 65535")],
)  # fmt: skip
def test_a_token_that_does_not_belong_is_named_by_shard_sample_and_place(version, check, token, name, words):
    row, column = a_text_token(version)
    forge(version, 0, put(row, column, token))
    (found,) = check().items()
    assert found[0] == name
    assert found[1].startswith(f"train/shard.000000.mds, sample {row}, token {column} {words}")


def test_an_end_that_is_missing_is_named(version, check):
    samples = samples_of((version / "train" / "shard.000000.mds").read_bytes(), SEQ_LEN, UINT16)
    row, column = next((int(row), int(column)) for row, column in np.argwhere(samples == EOS) if 0 < column < SEQ_LEN)
    forge(version, 0, put(row, column, 300))
    assert check() == {
        "document borders": f"train/shard.000000.mds, sample {row}, token {column} is to be EOS and is not"
    }


def test_samples_that_do_not_go_on_where_the_last_one_ended_are_named_across_shards_too(version, check):
    forge(version, 1, put(0, 0, 300))
    forge(version, 0, put(2, SEQ_LEN, 301))
    found = check()["overlap of samples"]
    first = len(samples_of((version / "train" / "shard.000000.mds").read_bytes(), SEQ_LEN, UINT16))
    assert "train/shard.000000.mds, sample 3, token 0 is not the last of the sample before" in found
    assert f"train/shard.000001.mds, sample {first}, token 0 is not the last of the sample before" in found


def test_samples_made_of_what_parts_left_over_are_looked_at_too(version, check):
    manifest = read_manifest(version)
    last = len(manifest.train.shard_samples) - 1
    assert last >= sum(part.shards["train"] for part in manifest.parts), "the parts left over no sample"
    row, column = a_text_token(version, last)
    forge(version, last, put(row, column, EOS))
    assert f"train/shard.{last:06d}.mds" in check()["document borders"]


def test_filler_is_counted_and_ten_of_it_are_named(version, check):
    forge(version, 0, lambda samples: samples[1:3, 1:-1].fill(BOS))
    found = check()["document borders"]
    assert found.count(";") >= 10 and " more" in found


def test_a_list_of_documents_that_is_lost_or_of_another_length_is_named_alone(version, check):
    (version / documents_path("train", 0)).unlink()
    path = version / documents_path("train", 1)
    table = parquet.read_table(path)
    parquet.write_table(table.slice(1), path)
    found = check()
    assert list(found) == ["document borders"]
    assert "train-0000.parquet cannot be read" in found["document borders"]
    assert "the documents of part 1 have " in found["document borders"]


def test_borders_in_other_places_than_the_list_says_are_found_though_the_sums_fit(version, check):
    path = version / documents_path("train", 2)
    table = parquet.read_table(path)
    tokens = table.column("tokens").to_pylist()
    tokens[3], tokens[4] = tokens[3] + 1, tokens[4] - 1
    table = table.set_column(table.schema.get_field_index("tokens"), "tokens", pyarrow.array(tokens, pyarrow.uint64()))
    parquet.write_table(table, path)
    found = check()["document borders"]
    assert "is EOS in the midst of a document" in found and "is to be EOS and is not" in found


def test_an_index_of_another_corpus_is_found_before_any_shard_is_read(version, check):
    index = version / "train" / "index.json"
    fields = json.loads(index.read_text())
    fields["shards"].reverse()
    index.write_text(json.dumps(fields))
    assert list(check()) == ["index"]
    assert "shards" not in check(wrong=False)


def test_another_model_under_the_same_name_is_told(check, tokenizer, tmp_path, sentences):
    train_tokenizer(sentences(200, seed=9), tmp_path / "other.model", vocab_size=320)
    found = check(tokenizer=replace(tokenizer, path=str(tmp_path / "other.model")))
    assert "name the one that it was prepared with" in found["tokenizer"]


def test_raw_files_that_changed_went_or_came_are_told_and_no_fault(version, check, tmp_path, sentences):
    write(tmp_path, sentences(9), "0.jsonl")
    (tmp_path / "raw" / "1.jsonl").unlink()
    write(tmp_path, sentences(9), "another.jsonl")
    assert check() == {}
    assert check(wrong=False)["raw files"] == (
        f"{PARTS - 2} of {PARTS} as they were when they were read (names, sizes, times), 1 changed, 1 gone, 1 added"
    )
