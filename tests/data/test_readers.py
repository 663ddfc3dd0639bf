import gzip
import json
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from tinyllama.data.readers import find_files, read_documents
from tinyllama.errors import ConfigError

ROWS = [
    {"text": "one\ntwo", "meta": {"set": "books"}},
    {"text": "", "meta": {"set": "books"}},
    {"text": "def f(): pass", "meta": {"set": "github"}},
    {"text": "三", "meta": {"set": "web"}},
    {"text": None, "meta": {"set": "web"}},
]


def jsonl(rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write(path, rows) -> None:
    """In the format that the name tells; zstd in two frames, as parallel compressors write it."""
    match path.name.split(".", 1)[1]:
        case "jsonl":
            path.write_bytes(jsonl(rows))
        case "jsonl.gz":
            path.write_bytes(gzip.compress(jsonl(rows)))
        case "jsonl.zst":
            path.write_bytes(zstandard.compress(jsonl(rows[:2])) + zstandard.compress(jsonl(rows[2:])))
        case "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)


def read(path, corpus):
    skipped = Counter()
    return [document.text for document in read_documents(path, corpus, skipped)], dict(skipped)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_every_format_gives_the_same_documents(tmp_path, corpus, name):
    write(tmp_path / name, ROWS)
    assert read(tmp_path / name, corpus()) == (["one\ntwo", "def f(): pass", "三"], {"empty": 2})


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.parquet"])
def test_rows_are_dropped_by_a_dotted_field(tmp_path, corpus, name):
    write(tmp_path / name, ROWS)
    texts, skipped = read(tmp_path / name, corpus(drop={"meta.set": ["github"]}))
    assert texts == ["one\ntwo", "三"]
    assert skipped == {"empty": 2, "meta.set=github is dropped": 1}


def test_only_rows_with_a_kept_value_are_kept(tmp_path, corpus):
    write(tmp_path / "a.jsonl", ROWS)
    texts, skipped = read(tmp_path / "a.jsonl", corpus(keep={"meta.set": ["books", "code"]}))
    assert texts == ["one\ntwo"]
    assert skipped == {"empty": 1, "meta.set=github is not kept": 1, "meta.set=web is not kept": 2}


def test_text_can_lie_in_another_field(tmp_path, corpus):
    write(tmp_path / "a.parquet", [{"content": "x = 1", "id": "7"}])
    assert read(tmp_path / "a.parquet", corpus(text_field="content"))[0] == ["x = 1"]


def test_lines_longer_than_a_chunk_and_a_last_line_without_its_end_are_read_whole(tmp_path, corpus):
    long = "word " * 700_000
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": long}]) + b'\n{"text": "last"}')
    assert read(tmp_path / "a.jsonl", corpus())[0] == [long, "last"]


def test_half_a_surrogate_pair_becomes_text_that_can_be_encoded(tmp_path, corpus):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b"}\n')
    assert read(tmp_path / "a.jsonl", corpus())[0] == ["a?b"]


def test_documents_say_where_they_come_from(tmp_path, corpus):
    write(tmp_path / "a.jsonl", ROWS)
    places = [document.source for document in read_documents(tmp_path / "a.jsonl", corpus(), Counter())]
    assert places == [f"{tmp_path}/a.jsonl:{line}" for line in (1, 3, 4)]


@pytest.mark.parametrize(
    "line, complaint",
    [
        ('{"text": "cut', "a.jsonl:2 is no JSON"),
        ('["text"]', "a.jsonl:2 is no JSON object but a list"),
        ('{"content": "x"}', "a.jsonl:2: corpora.tales.text_field names text, which this row lacks; it has content"),
        ('{"text": 7}', "a.jsonl:2: text is no text but a int"),
    ],
)
def test_a_bad_line_is_named(tmp_path, corpus, line, complaint):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(ConfigError, match=complaint):
        read(tmp_path / "a.jsonl", corpus())


def test_a_filter_on_a_field_that_is_not_there_is_named(tmp_path, corpus):
    write(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(ConfigError, match=r"a.jsonl:1: corpora.tales.drop names meta.sat, which this row lacks"):
        read(tmp_path / "a.jsonl", corpus(drop={"meta.sat": ["github"]}))


def test_a_missing_parquet_column_is_named(tmp_path, corpus):
    write(tmp_path / "a.parquet", ROWS)
    with pytest.raises(ConfigError, match=r"a.parquet has no column content .* its columns: text, meta"):
        read(tmp_path / "a.parquet", corpus(text_field="content"))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_that_was_cut_short_is_refused(tmp_path, corpus, name):
    write(tmp_path / name, ROWS)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-3])
    with pytest.raises(ConfigError, match=name):
        read(tmp_path / name, corpus())


def test_files_come_in_the_order_of_the_globs_and_by_name(tmp_path, corpus):
    for name in ("b/2.jsonl", "b/1.jsonl", "a/3.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_files(corpus(files=[f"{tmp_path}/b/*.jsonl", f"{tmp_path}/*/*.jsonl"]))
    assert [str(path.relative_to(tmp_path)) for path in found] == ["b/1.jsonl", "b/2.jsonl", "a/3.jsonl"]


def test_each_glob_must_match_something(tmp_path, corpus):
    write(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(ConfigError, match=r"corpora.tales.files=.*/none/\*.jsonl matches no file.*tinyllama.sample"):
        find_files(corpus(files=[f"{tmp_path}/*.jsonl", f"{tmp_path}/none/*.jsonl"]))


def test_an_unknown_format_is_refused(tmp_path, corpus):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ConfigError, match="a.txt is of no known format; .* .jsonl.zst"):
        read(tmp_path / "a.txt", corpus())
