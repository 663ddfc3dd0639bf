"""What is shown of a sample is what stood in the raw files."""

import json

import pytest

from tests.data.preparing import write
from tinyllama.data.passage import read_passage
from tinyllama.data.tokenizer import EOS, Tokenizer
from tinyllama.errors import ConfigError, DamageError


def raw(file, row):
    """The text of a line."""
    with open(file) as lines:
        return json.loads(lines.read().split("\n")[row - 1])["text"]


@pytest.mark.usefixtures("three_parts")
def test_every_token_of_every_sample_is_the_one_of_its_document_at_its_place(
    tmp_path, prepare, folder, tokenizer, sentences
):
    for index in range(3, 8):
        write(tmp_path, sentences(9, seed=index), f"{index}.jsonl")
    manifest, model = prepare(), Tokenizer.load(tokenizer)
    assert len(manifest.parts) == 8
    assert len(manifest.train.shard_samples) > sum(part.shards["train"] for part in manifest.parts)
    shown = 0
    for split, each in manifest.splits.items():
        for number in range(each.samples):
            passage = read_passage(folder.resolve(), manifest, split, number, model)
            assert passage.tokens == manifest.seq_len + 1
            for fragment in passage.fragments:
                excerpt = fragment.excerpt
                text = raw(excerpt.file, excerpt.row)
                tokens = [*model.encode(text), EOS]
                assert excerpt.document_tokens == len(tokens) and excerpt.source_set == "tales"
                assert list(fragment.tokens) == tokens[excerpt.begin : excerpt.end]
                assert "\ufffd" in fragment.text or fragment.text in text
                shown += 1
    assert shown > manifest.documents, "documents that are cut are shown in several samples"


def test_what_the_vocabulary_spells_in_bytes_is_counted(tmp_path, prepare, folder, tokenizer):
    write(tmp_path, ["🜚" * 40])
    manifest = prepare(validation_fraction=0.0)
    passage = read_passage(folder.resolve(), manifest, "train", 0, Tokenizer.load(tokenizer))
    assert passage.bytes >= passage.tokens - 1 and passage.unknown == 0
    assert passage.fragments[0].text.startswith("🜚🜚")


@pytest.mark.parametrize("sample", [-1, 10**6])
def test_a_sample_that_is_not_there_is_refused_with_those_that_are(
    tmp_path, prepare, folder, tokenizer, sentences, sample
):
    write(tmp_path, sentences(60))
    manifest = prepare()
    with pytest.raises(ConfigError, match=rf"sample={sample} is not in tales: .* 0 to {manifest.train.samples - 1}"):
        read_passage(folder.resolve(), manifest, "train", sample, Tokenizer.load(tokenizer))


def test_a_shard_that_is_lost_is_named(tmp_path, prepare, folder, tokenizer, sentences):
    write(tmp_path, sentences(60))
    manifest = prepare()
    (folder / "train" / "shard.000000.mds").unlink()
    with pytest.raises(DamageError, match=r"shard\.000000\.mds cannot be read"):
        read_passage(folder.resolve(), manifest, "train", 0, Tokenizer.load(tokenizer))
