import json
import subprocess
import sys
from collections import Counter
from itertools import chain
from random import Random

import pyarrow.parquet
import pytest

from tests.data.preparing import SEQ_LEN, write
from tinyllama.data import pack as pack_module
from tinyllama.data import seams
from tinyllama.data import tokenizer as tokenizer_module
from tinyllama.data.listing import find_files
from tinyllama.data.mds import LocalDataset
from tinyllama.data.pack import SPLITS, TOO_LONG, held_out, pack
from tinyllama.data.recipe import Recipe
from tinyllama.data.tokenizer import EOS, UNK, Tokenizer


@pytest.fixture
def packed(tmp_path, corpus, tokenizer):
    """packed(keep=...) packs all files of the test's corpus as one part: its tally; the part is tmp_path/part."""

    def run(shard_samples=16, **settings):
        model = Tokenizer.load(tokenizer)
        recipe = Recipe(corpus(**settings), tokenizer, model.digest, SEQ_LEN, shard_samples)
        (tmp_path / "part").mkdir()
        return pack(recipe, find_files(recipe.corpus), tmp_path / "part", model)

    return run


def stream(tally, folder, split):
    """All tokens of a split of a part."""
    stored = LocalDataset(str(folder / split)) if tally.shards[split] else []
    rows = [stored[index]["tokens"] for index in range(len(stored))]
    first = [rows[0][0]] if rows else []
    return [*first, *chain.from_iterable(row[1:].tolist() for row in rows), *tally.left_over[split]]


def table(folder, split):
    return pyarrow.parquet.read_table(folder / f"documents-{split}.parquet").to_pylist()


def test_the_tables_tell_of_each_document_its_tokens_and_where_it_came_from(
    tmp_path, packed, tokenizer, sentences, monkeypatch
):
    monkeypatch.setattr(pack_module, "BATCH_CHARACTERS", 500)
    monkeypatch.setattr(pack_module, "TABLE_ROWS", 8)
    texts = {name: sentences(40, seed) for seed, name in enumerate(("a.jsonl", "b.jsonl"))}
    for name, own in texts.items():
        write(tmp_path, [*own[:5], "", *own[5:]], name)
    tally = packed(files=[str(tmp_path / "raw" / name) for name in texts])
    model = Tokenizer.load(tokenizer)
    for split, held in zip(SPLITS, (False, True), strict=True):
        wanted, tokens = [], []
        for file, (name, own) in enumerate(texts.items()):
            for index, text in enumerate(own):
                if held_out(text, 0.1) is held:
                    ids = [*model.encode(text), EOS]
                    row = index + 1 + (index >= 5)
                    wanted.append({"tokens": len(ids), "file": file, "row": row, "source_set": name})
                    tokens += ids
        assert table(tmp_path / "part", split) == wanted
        assert stream(tally, tmp_path / "part", split) == tokens
        assert tally.documents[split] == len(wanted)


def test_the_tally_counts_what_the_tables_and_shards_hold(tmp_path, packed, sentences):
    rows = [{"text": text, "set": f"s{number % 3}"} for number, text in enumerate(sentences(90))]
    (tmp_path / "raw" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tally = packed(source_field="set")
    documents = [row for split in SPLITS for row in table(tmp_path / "part", split)]
    counted, tokens = Counter(row["source_set"] for row in documents), Counter()
    for row in documents:
        tokens[row["source_set"]] += row["tokens"]
    assert tally.source_sets == {name: {"documents": counted[name], "tokens": tokens[name]} for name in counted}
    assert (len(counted), tally.tokens) == (3, tokens.total())
    assert tally.characters == sum(len(row["text"]) for row in rows)
    for split in SPLITS:
        assert tally.shards[split] == len(list((tmp_path / "part" / split).glob("*.mds")))


def test_no_special_token_comes_from_a_text(tmp_path, packed):
    texts = ["<s> a </s> <unk> b", "</s>", "<s><s>", "a NUL \0 here", "\0", "<0x00><0x0A>", "▁", "\ufffd\ud7ff"]
    write(tmp_path, texts)
    tally = packed(validation_fraction=0.0)
    tokens = stream(tally, tmp_path / "part", "train")
    assert tokens.count(EOS) == len(texts)
    assert not {UNK, 1} & set(tokens)
    assert tally.noted == {"holds NUL": 2}


def test_a_long_document_stays_whole(tmp_path, packed, tokenizer, sentences):
    text = "\n".join(sentences(3_000))
    write(tmp_path, [text, "sand"])
    tally = packed(validation_fraction=0.0)
    model = Tokenizer.load(tokenizer)
    assert stream(tally, tmp_path / "part", "train") == [*model.encode(text), EOS, *model.encode("sand"), EOS]


def test_a_document_that_memory_would_not_hold_is_skipped_and_counted(tmp_path, packed, monkeypatch):
    monkeypatch.setattr(seams, "STRETCH", 2)
    monkeypatch.setattr(tokenizer_module, "STRETCH", 2)
    monkeypatch.setattr(tokenizer_module, "LONGEST_STRETCH", 3)
    write(tmp_path, ["7" * 50, "window window", "1 2 3"])
    tally = packed(validation_fraction=0.0)
    assert tally.skipped == {TOO_LONG: 1}
    assert [row["row"] for row in table(tmp_path / "part", "train")] == [1, 3]


@pytest.mark.parametrize("texts", [[], ["", ""], ["sand"]])
def test_a_part_of_nothing_or_of_next_to_nothing_is_a_part(tmp_path, packed, texts):
    write(tmp_path, texts)
    tally = packed()
    assert tally.documents.total() == len(list(filter(None, texts))) == len(table(tmp_path / "part", "train"))
    assert tally.shards == {"train": 0, "validation": 0}
    assert table(tmp_path / "part", "validation") == []


def test_copies_of_a_document_are_on_the_same_side(tmp_path, packed, sentences):
    texts = sentences(100)
    write(tmp_path, [*texts, *reversed(texts)])
    tally = packed(validation_fraction=0.3)
    assert 0 < tally.documents["validation"] < 100
    rows = [row["row"] for row in table(tmp_path / "part", "validation")]
    assert sorted(201 - row for row in rows) == rows


PEAK = """
import re, sys
from pathlib import Path
from tinyllama.config.schema import CorpusConfig, TokenizerConfig
from tinyllama.data.listing import find_files
from tinyllama.data import pack as pack_module
from tinyllama.data.recipe import Recipe
from tinyllama.data.tokenizer import Tokenizer
pack_module.BATCH_CHARACTERS >>= 2
raw, folder, model, size = sys.argv[1:]
tokenizer = TokenizerConfig(name="small", path=model, vocab_size=int(size))
corpus = CorpusConfig(name="tales", files=[raw], tokens=1, validation_fraction=0.1)
exact = Tokenizer.load(tokenizer)
Path(folder).mkdir()
tally = pack_module.pack(Recipe(corpus, tokenizer, exact.digest, 512, 1024), find_files(corpus), Path(folder), exact)
print(tally.characters, int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**10)
"""


def peak_mib(tmp_path, tokenizer, texts):
    """Memory that it takes to pack these texts in a process of its own."""
    write(tmp_path, texts)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "raw" / "a.jsonl"), str(tmp_path / f"part-{len(texts)}")]
    arguments = [tokenizer.path, str(tokenizer.vocab_size)]
    done = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)
    characters, peak = done.stdout.split()
    assert int(characters) == sum(map(len, texts))
    return float(peak)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path, tokenizer, sentences):
    texts = ["\n".join(sentences(40, seed)) for seed in range(300)]
    little = peak_mib(tmp_path, tokenizer, texts)
    copies = [f"{number} {text}" for number in range(5) for text in texts]
    added = (sum(map(len, copies)) - sum(map(len, texts))) / 2**20
    assert peak_mib(tmp_path, tokenizer, copies) - little < added / 2


@pytest.mark.slow
def test_an_enormous_document_takes_little_more_than_its_size(tmp_path, tokenizer):
    random = Random(0)
    text = "".join(random.choices("01 \n山é.", k=3 << 20))
    before = peak_mib(tmp_path, tokenizer, ["sand", "river"])
    # sentencepiece alone takes 50 bytes for each character
    assert peak_mib(tmp_path, tokenizer, [text]) - before < 20 * len(text) / 2**20
