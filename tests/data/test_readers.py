import json

import pytest

from tinyllama.config.schema import OnBadRow
from tinyllama.data import readers
from tinyllama.data.listing import RawFile
from tinyllama.data.readers import Findings, read_documents, source_sets
from tinyllama.errors import ConfigError

ROWS = [
    {"text": "one\ntwo", "meta": {"set": "books"}},
    {"text": "", "meta": {"set": "books"}},
    {"text": "def f(): pass", "meta": {"set": "github"}},
    {"text": "三", "meta": {"set": "web"}},
    {"text": None, "meta": {"set": "web"}},
]
BAD_LINES = [
    (b'{"text": "cut', "is no JSON: ", "no JSON"),
    (100_000 * b"[", "is no JSON: ", "no JSON"),
    (b'{"text": "\xff"}', "is no UTF-8: ", "no UTF-8"),
    (b'["text"]', "is no JSON object but a list", "no JSON object"),
    (b'{"content": "x"}', "lacks text, which corpora.tales.text_field names; it has content", "lacks text"),
    (b'{"text": 7}', "has no text in text but a int", "text is no text"),
]


@pytest.fixture
def read(tmp_path, corpus):
    """read(content, on_bad_row=...) -> the documents of a.jsonl with these rows or bytes, and the findings."""

    def read_file(content, **settings):
        lines = content if isinstance(content, bytes) else "".join(json.dumps(row) + "\n" for row in content).encode()
        path, findings = tmp_path / "a.jsonl", Findings()
        path.write_bytes(lines)
        return list(read_documents(path, RawFile(str(path), 0, 0), corpus(**settings), findings)), findings

    return read_file


def texts(documents) -> list[str]:
    return [document.text for document in documents]


# ---------------------------------------------------------------- filters


def test_rows_are_dropped_by_a_dotted_field(read):
    documents, findings = read(ROWS, drop={"meta.set": ["github"]})
    assert texts(documents) == ["one\ntwo", "三"]
    assert findings.skipped == {"empty": 2, "meta.set=github is dropped": 1}


def test_only_rows_with_a_kept_value_are_kept(read):
    documents, findings = read(ROWS, keep={"meta.set": ["books", "code"]})
    assert texts(documents) == ["one\ntwo"]
    assert findings.skipped == {"empty": 1, "meta.set=github is not kept": 1, "meta.set=web is not kept": 2}


def test_values_without_number_do_not_make_reasons_without_number(read):
    _, findings = read([{"text": "a", "id": number} for number in range(1000)], keep={"id": ["7"]})
    assert len(findings.skipped) == readers.REASONS + 1
    assert findings.skipped.total() == 999
    assert findings.skipped["another id is not kept"] == 999 - readers.REASONS


def test_text_can_lie_in_another_dotted_field(read):
    assert texts(read([{"content": {"raw": "x = 1"}, "id": "7"}], text_field="content.raw")[0]) == ["x = 1"]


def test_the_row_of_a_document_is_its_line(read):
    assert [document.row for document in read(ROWS)[0]] == [1, 3, 4]


# ---------------------------------------------------------------- source sets


def test_a_field_names_the_source_set_of_a_row_and_the_corpus_that_of_a_row_without_it(read):
    rows = [*ROWS, {"text": "unknown", "meta": {"set": None}}]
    documents, _ = read(rows, source_field="meta.set")
    assert [document.source_set for document in documents] == ["books", "github", "web", "tales"]


@pytest.mark.parametrize(
    "globs, names",
    [
        (["/data/raw/tales/*.jsonl"], ["tales"]),
        (["raw/algebra/train/*.zst", "raw/arxiv/train/*.zst"], ["algebra", "arxiv"]),
        (["s3://b/python/*.parquet", "s3://b/jupyter-*/*.parquet"], ["python", "jupyter-*"]),
        (["raw/a/*.jsonl", "raw/*.jsonl"], ["a/*.jsonl", "*.jsonl"]),
        (["raw/a.jsonl", "raw/b.jsonl"], ["a.jsonl", "b.jsonl"]),
    ],
)
def test_what_differs_between_the_globs_of_a_corpus_names_its_source_sets(corpus, globs, names):
    assert source_sets(corpus(files=globs)) == dict(zip(globs, names, strict=True))


def test_the_glob_of_a_file_names_the_source_set_of_its_documents(tmp_path, corpus):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    globs = [f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl"]
    file = RawFile(globs[0], 0, 0, glob=globs[0])
    (document,) = read_documents(tmp_path / "a.jsonl", file, corpus(files=globs), Findings())
    assert document.source_set == "a.jsonl"


# ---------------------------------------------------------------- rows that cannot be used


@pytest.mark.parametrize("line, complaint, reason", BAD_LINES)
def test_a_bad_row_stops_the_preparation_and_is_named_with_the_remedy(read, line, complaint, reason):
    with pytest.raises(ConfigError) as raised:
        read(b'{"text": "fine"}\n' + line + b"\n")
    assert f"a.jsonl:2 {complaint}" in str(raised.value)
    assert "; mend or fetch the file again" in str(raised.value)
    assert str(raised.value).endswith("corpora.tales.on_bad_row=skip")


@pytest.mark.parametrize("line, complaint, reason", BAD_LINES)
def test_a_bad_row_is_left_out_and_counted_where_that_is_wanted(tmp_path, read, line, complaint, reason):
    documents, findings = read(b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n', on_bad_row=OnBadRow.skip)
    assert texts(documents) == ["a", "b"]
    assert findings.skipped == {reason: 1}
    assert len(findings.bad_rows) == 1
    assert findings.bad_rows[0].startswith(f"{tmp_path}/a.jsonl:2 {complaint}")


@pytest.mark.parametrize("setting", ["keep", "drop"])
def test_a_filter_on_a_field_that_is_not_there_is_named(read, setting):
    with pytest.raises(ConfigError, match=rf"a.jsonl:1 lacks meta.sat, which corpora.tales.{setting} names"):
        read(ROWS, **{setting: {"meta.sat": ["github"]}})


def test_a_source_field_that_is_not_there_is_named(read):
    with pytest.raises(ConfigError, match=r"a.jsonl:1 lacks meta.sat, which corpora.tales.source_field names"):
        read(ROWS, source_field="meta.sat")


def test_only_the_first_bad_rows_are_told_one_by_one(read):
    _, findings = read(50 * b"no JSON\n", on_bad_row=OnBadRow.skip)
    assert findings.skipped == {"no JSON": 50}
    assert len(findings.bad_rows) == readers.BAD_ROWS


# ---------------------------------------------------------------- unusual texts


def test_a_text_with_nul_is_kept_as_it_is_and_noted(read):
    documents, findings = read([{"text": "a\0b"}, {"text": "c"}])
    assert texts(documents) == ["a\0b", "c"]
    assert findings == Findings(noted={"holds NUL": 1})


def test_half_a_surrogate_pair_becomes_text_that_can_be_encoded_and_is_noted(read):
    documents, findings = read(b'{"text": "a\\ud800b"}\n{"text": "\\ud83d\\ude00"}\n')
    assert texts(documents) == ["a?b", "😀"]
    assert findings == Findings(noted={"held half a surrogate pair": 1})


@pytest.mark.parametrize("on_bad_row", OnBadRow)
def test_an_empty_text_is_left_out_and_counted_by_either_rule(read, on_bad_row):
    documents, findings = read([{"text": ""}, {"text": None}, {"text": " "}], on_bad_row=on_bad_row)
    assert texts(documents) == [" "]
    assert findings == Findings(skipped={"empty": 2})
