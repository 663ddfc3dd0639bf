import gzip
import json
import struct
import subprocess
import sys
from pathlib import Path
from random import Random

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from tests.forked import in_child
from tinyllama.config.schema import OnBadRow, RawFormat
from tinyllama.data.listing import RawFile, fetched, find_files
from tinyllama.data.readers import Findings, read_documents
from tinyllama.errors import ConfigError

ROWS = [
    {"text": "one\ntwo", "meta": {"set": "books"}},
    {"text": "", "meta": {"set": "books"}},
    {"text": "def f(): pass", "meta": {"set": "github"}},
    {"text": "三", "meta": {"set": "web"}},
    {"text": None, "meta": {"set": "web"}},
]
TEXTS = ["one\ntwo", "def f(): pass", "三"]
NAMES = ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.arrow"]


def jsonl(rows, end="\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


def write(path, rows) -> None:
    """In the format that the name tells; compressed ones in two frames, as parallel compressors write them."""
    match path.name.split(".", 1)[1]:
        case "jsonl":
            path.write_bytes(jsonl(rows))
        case "jsonl.gz":
            path.write_bytes(gzip.compress(jsonl(rows[:2])) + gzip.compress(jsonl(rows[2:])))
        case "jsonl.zst":
            path.write_bytes(zstandard.compress(jsonl(rows[:2])) + zstandard.compress(jsonl(rows[2:])))
        case "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
        case "arrow":
            table = pyarrow.Table.from_pylist(rows)
            with pyarrow.ipc.new_stream(path, table.schema) as stream:
                stream.write_table(table, max_chunksize=2)


def read(path, corpus, findings=None):
    findings = Findings() if findings is None else findings
    documents = read_documents(Path(path), RawFile(str(path), 0, 0), corpus, findings)
    return [document.text for document in documents]


def read_all(corpus, scratch):
    found = []
    for file in find_files(corpus):
        with fetched(file, scratch) as content:
            found += [document.text for document in read_documents(content.path, file, corpus, Findings())]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_documents_in_the_same_rows(tmp_path, corpus, name):
    write(tmp_path / name, ROWS)
    findings = Findings()
    file = RawFile(str(tmp_path / name), 0, 0)
    documents = list(read_documents(tmp_path / name, file, corpus(source_field="meta.set"), findings))
    assert [document.text for document in documents] == TEXTS
    assert [document.row for document in documents] == [1, 3, 4]
    assert [document.source_set for document in documents] == ["books", "github", "web"]
    assert findings == Findings(skipped={"empty": 2})


@pytest.mark.parametrize("name", NAMES)
def test_a_file_without_rows_is_read(tmp_path, corpus, name):
    write(tmp_path / name, ROWS)
    rows = pyarrow.Table.from_pylist(ROWS).schema.empty_table()
    if name == "a.parquet":
        pyarrow.parquet.write_table(rows, tmp_path / name)
    elif name == "a.arrow":
        pyarrow.ipc.new_stream(tmp_path / name, rows.schema).close()
    else:
        write(tmp_path / name, [])
    assert read(tmp_path / name, corpus()) == []


def test_an_arrow_file_with_a_directory_is_read_too(tmp_path, corpus):
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_file(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=2)
    assert read(tmp_path / "a.arrow", corpus()) == TEXTS


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.txt.gz", "a.txt.zst"])
def test_a_text_file_is_a_document(tmp_path, corpus, name):
    text = "# one\r\n\r\ntwo 三\n"
    pack = {"gz": gzip.compress, "zst": zstandard.compress}.get(name.split(".")[-1], bytes)
    (tmp_path / name).write_bytes(pack(text.encode()))
    assert read(tmp_path / name, corpus()) == [text]


def test_any_file_can_be_said_to_be_text_or_lines(tmp_path, corpus):
    (tmp_path / "a.rst").write_text("text")
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(jsonl(ROWS)))
    assert read(tmp_path / "a.rst", corpus(format=RawFormat.text, text_field="content")) == ["text"]
    assert read(tmp_path / "a.json.gz", corpus(format=RawFormat.jsonl)) == TEXTS


def test_an_unknown_format_is_refused(tmp_path, corpus):
    (tmp_path / "a.rst").write_text("text")
    with pytest.raises(ConfigError, match=r"a.rst is of no known format: .* .jsonl, .parquet.*corpora.tales.format="):
        read(tmp_path / "a.rst", corpus())


# ---------------------------------------------------------------- lines


def test_byte_order_marks_windows_line_ends_and_blank_lines_do_no_harm(tmp_path, corpus):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl(ROWS[:2], end="\r\n") + b"\r\n" + jsonl(ROWS[2:]))
    assert read(tmp_path / "a.jsonl", corpus()) == TEXTS


def test_lines_longer_than_a_chunk_and_a_last_line_without_its_end_are_read_whole(tmp_path, corpus):
    long = "word " * 700_000
    content = jsonl([{"text": long}]) + b'\n{"text": "last"}'
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(content))
    assert read(tmp_path / "a.jsonl", corpus()) == [long, "last"]
    assert read(tmp_path / "a.jsonl.zst", corpus()) == [long, "last"]


# ---------------------------------------------------------------- files that were cut short


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("kept", [-3, 40, 0])
def test_a_file_that_was_cut_short_stops_the_preparation(tmp_path, corpus, name, kept):
    write(tmp_path / name, ROWS)
    content = (tmp_path / name).read_bytes()[:kept]
    (tmp_path / name).write_bytes(content)
    if name.startswith("a.jsonl") and kept == 0:
        assert read(tmp_path / name, corpus()) == []  # nothing, compressed by no compressor
        return
    with pytest.raises(ConfigError, match=rf"{name}:\d+ and what follows cannot be read.*on_bad_row=skip"):
        read(tmp_path / name, corpus())


@pytest.mark.parametrize(
    "name, kept, before",
    [
        ("a.jsonl.gz", -12, TEXTS),  # of the row after them, a part is there
        ("a.jsonl.zst", -12, TEXTS[:1]),  # its frames give all or nothing when they are this small
        ("a.arrow", -8, TEXTS),  # it lacks its mark of the end
        ("a.parquet", -3, []),  # its directory stands at its end
    ],
)
def test_what_comes_before_a_cut_is_used_where_bad_rows_are_skipped(tmp_path, corpus, name, kept, before):
    write(tmp_path / name, ROWS)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:kept])
    findings = Findings()
    assert read(tmp_path / name, corpus(on_bad_row=OnBadRow.skip), findings) == before
    assert findings.skipped["the rest cannot be read"] == 1
    assert len(findings.bad_rows) == 1


def test_a_cut_in_the_middle_of_a_frame_keeps_the_lines_before_it(tmp_path, corpus):
    rows = [{"text": f"{number} {struct.pack('<I', number * 2654435761 % 2**32).hex()}"} for number in range(30_000)]
    whole = zstandard.compress(jsonl(rows))
    (tmp_path / "a.jsonl.zst").write_bytes(whole[: len(whole) // 2])
    findings = Findings()
    texts = read(tmp_path / "a.jsonl.zst", corpus(on_bad_row=OnBadRow.skip), findings)
    assert 10_000 < len(texts) < 20_000
    assert texts == [row["text"] for row in rows[: len(texts)]]
    assert findings.bad_rows == [
        f"{tmp_path}/a.jsonl.zst:{len(texts) + 1} and what follows cannot be read: the compressed stream ends too early"
    ]


def test_a_text_file_that_was_cut_short_is_left_out(tmp_path, corpus):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"text")[:-3])
    findings = Findings()
    assert read(tmp_path / "a.txt.gz", corpus(on_bad_row=OnBadRow.skip), findings) == []
    assert findings.skipped == {"the rest cannot be read": 1}


def test_what_the_disk_does_not_give_is_no_bad_row(corpus):
    memory = RawFile("/proc/self/mem", 0, 0)  # opens, and cannot be read from its beginning
    for format in RawFormat.jsonl, RawFormat.text:
        with pytest.raises(ConfigError, match=r"/proc/self/mem cannot be read .*Input/output error"):
            read(memory.path, corpus(format=format, on_bad_row=OnBadRow.skip))


# ---------------------------------------------------------------- columns


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path, corpus):
    for name in ("a.parquet", "a.arrow"):
        write(tmp_path / name, ROWS)
        with pytest.raises(ConfigError, match=rf"{name}:1 lacks content, .*text_field names; it has text, meta"):
            read(tmp_path / name, corpus(text_field="content"))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_text_that_is_no_utf8_is_told_by_its_row(tmp_path, corpus, name):
    lengths, content = pyarrow.py_buffer(struct.pack("<4i", 0, 1, 2, 3)), pyarrow.py_buffer(b"a\xffc")
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 3, [None, lengths, content])
    table = pyarrow.table({"text": texts})
    if name == "a.parquet":
        pyarrow.parquet.write_table(table, tmp_path / name)
    else:
        with pyarrow.ipc.new_stream(tmp_path / name, table.schema) as stream:
            stream.write_table(table)
    findings = Findings()
    assert read(tmp_path / name, corpus(on_bad_row=OnBadRow.skip), findings) == ["a", "c"]
    assert findings.skipped == {"no UTF-8": 1}
    assert findings.bad_rows[0].startswith(f"{tmp_path}/{name}:2 is no UTF-8")


# ---------------------------------------------------------------- what Hugging Face's library saves


def test_a_saved_data_set_is_read_from_a_folder_and_from_an_object_store(tmp_path, corpus, object_store):
    datasets = pytest.importorskip("datasets")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    saved = datasets.Dataset.from_dict({"text": [f"text {number}" for number in range(25)], "id": list(range(25))})
    saved.save_to_disk(tmp_path / "saved", num_shards=3)
    state = json.loads((tmp_path / "saved/state.json").read_text())
    state["_data_files"].reverse()  # by what it says, not by the files' names
    (tmp_path / "saved/state.json").write_text(json.dumps(state))
    texts = list(datasets.load_from_disk(tmp_path / "saved")["text"])
    object_store.upload(tmp_path / "saved", "sets/saved")
    here = corpus(files=[f"{tmp_path}/saved"])
    there = corpus(files=[f"{object_store.address}/sets/*"])
    assert len(find_files(here)) == len(find_files(there)) == 3
    assert read_all(here, tmp_path) == read_all(there, tmp_path / "scratch") == texts


def test_of_a_saved_data_set_with_splits_they_are_to_be_named(tmp_path, corpus):
    datasets = pytest.importorskip("datasets")
    split = datasets.Dataset.from_dict({"text": ["a", "b"]})
    datasets.DatasetDict({"train": split, "test": split.select([1])}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ConfigError, match=rf"data set with splits; .*{tmp_path}/saved/train or {tmp_path}/saved/test"):
        find_files(corpus(files=[f"{tmp_path}/saved"]))
    assert read_all(corpus(files=[f"{tmp_path}/saved/t*"]), tmp_path) == ["b", "a", "b"]


# ---------------------------------------------------------------- memory


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_memory_does_not_grow_with_the_file(tmp_path, corpus, name):
    paths = [tmp_path / f"{megabytes}{name[1:]}" for megabytes in (32, 80)]

    def make() -> None:
        for path in paths:
            rows = range(100 * int(path.name.split(".")[0]))
            # Such text as packs to a half: 8 KiB of what packs ten thousand times as well are a large chunk.
            write(path, [{"text": f"{number} " + Random(number).randbytes(5000).hex()} for number in rows])
        if name == "a.parquet":  # as far as its writers go: one row group
            for path in paths:
                pyarrow.parquet.write_table(pyarrow.parquet.read_table(path), path, row_group_size=10**9)

    in_child(make)  # this process would keep the memory
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tinyllama.config.schema import CorpusConfig\n"
        "from tinyllama.data.listing import RawFile\n"
        "from tinyllama.data.readers import Findings, read_documents\n"
        "corpus = CorpusConfig(name='tales', files=['*'], tokens=1, max_epochs=None, validation_fraction=0.0)\n"
        "for path in sys.argv[1:]:\n"
        "    for _ in read_documents(Path(path), RawFile(path, 0, 0), corpus, Findings()): pass\n"
        "    status = Path('/proc/self/status').read_text()\n"  # getrusage's peak includes that of the caller
        "    print(int(status.partition('VmHWM:')[2].split()[0]) / 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *map(str, paths)], capture_output=True, text=True, check=True)
    small, large = map(float, done.stdout.split())
    assert large < small + 16, (small, large)
