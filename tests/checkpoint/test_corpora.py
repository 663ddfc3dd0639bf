"""What a run keeps of its corpora: enough to plan it anew, and to see that they have changed."""

import json
from dataclasses import replace

import pytest

from tinyllama.checkpoint.corpora import read_corpora, record_corpus, write_corpora
from tinyllama.data.manifest import Manifest, Source, SplitManifest, write_manifest
from tinyllama.errors import DamageError

MANIFEST = Manifest(
    corpus="slim",
    fingerprint="f" * 64,
    inputs="i" * 64,
    tokenizer_digest="t" * 64,
    seq_len=8,
    add_eos=True,
    add_bos=False,
    documents=12,
    skipped={"empty": 1},
    noted={},
    bad_rows=(),
    source_sets={},
    characters=1000,
    tokens=300,
    left_over_tokens=4,
    bytes=900,
    train=SplitManifest(documents=10, samples=30, tokens=240, shard_samples=(20, 10)),
    validation=SplitManifest(documents=2, samples=7, tokens=56, shard_samples=(7,)),
    sources=(Source("raw/a.jsonl", 1000, 1_700_000_000, "s" * 64),),
    parts=(),
)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "shards" / "slim"
    path.mkdir(parents=True)
    write_manifest(path, MANIFEST)
    return path


def test_what_was_written_down_is_read_back_and_plans_the_same(folder, tmp_path):
    write_corpora(tmp_path / "corpora.json", {"slim": folder})
    found = read_corpora(tmp_path / "corpora.json")["slim"]
    assert found == record_corpus(folder)
    assert (found.documents, found.samples, found.tokens) == (10, 30, 240)
    assert found.corpus("slim").shard_samples == (20, 10)
    assert found.folder == str(folder)


def test_paths_and_times_of_the_raw_files_do_not_count_and_all_else_does(folder):
    before = record_corpus(folder).manifest
    moved = replace(MANIFEST.sources[0], path="elsewhere/a.jsonl", modified_ns=5)
    write_manifest(folder, replace(MANIFEST, sources=(moved,)))
    assert record_corpus(folder).manifest == before
    changed_source = replace(MANIFEST.sources[0], sha256="r" * 64)
    for change in [{"documents": 13}, {"sources": (changed_source,)}, {"sources": ()}, {"skipped": {}}]:
        write_manifest(folder, replace(MANIFEST, **change))
        assert record_corpus(folder).manifest != before


def test_every_line_counts(folder, tmp_path):
    path = tmp_path / "corpora.json"
    write_corpora(path, {"slim": folder})
    lines = path.read_text().splitlines(keepends=True)
    for number in range(len(lines)):
        path.write_text("".join(lines[:number] + lines[number + 1 :]))
        with pytest.raises(DamageError, match=r"corpora\.json"):
            read_corpora(path)
    whole = json.loads("".join(lines))
    whole["slim"]["shard_samples"] = [30]
    path.write_text(json.dumps(whole))
    with pytest.raises(DamageError, match="its content is not what its seal vouches for"):
        read_corpora(path)
