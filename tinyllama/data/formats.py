"""Raw corpus files -> rows: one reader per format. Memory is bounded by the longest row, whatever the file's size."""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import zstandard

from tinyllama.config.schema import CorpusConfig, RawFormat
from tinyllama.data.listing import RawFile
from tinyllama.errors import ConfigError

CHUNK = 1 << 18
# Small, since all that it unpacks to comes at once, and this may be ten thousand times as much.
PACKED_CHUNK = 1 << 13
BATCH_BYTES = 1 << 22
"""Of rows that are turned into Python's objects at once."""
BATCH_ROWS = 256
# How arrow's files begin, and how its streams end.
ARROW_FILE, END_OF_STREAM = b"ARROW1", b"\xff\xff\xff\xff\0\0\0\0"
UNREADABLE = "the rest cannot be read"

Row = tuple[int, Mapping[str, Any]]
"""The line or row of a file, from 1, and its fields."""
BadRow = Callable[[int, str, str], None]
"""Told of a row that cannot be used: its number, the kind of reason, and what is wrong; it may raise."""
Reader = Callable[[Path, RawFile, CorpusConfig, BadRow], Iterator[Row]]


def rows(path: Path, file: RawFile, corpus: CorpusConfig, bad_row: BadRow) -> Iterator[Row]:
    """Rows of a raw file whose content is at `path`; `bad_row` is told of those that cannot be read.

    Raises:
        ConfigError: a file of no known format, or the disk does not give it: what is lost so is no bad row.
    """
    try:
        yield from READERS[_format(file, corpus)](path, file, corpus, bad_row)
    except OSError as error:
        raise ConfigError(
            f"{file.path} cannot be read ({error}); see to its disk, then give the same command"
        ) from error


# ---------------------------------------------------------------- lines


def _jsonl(path: Path, file: RawFile, corpus: CorpusConfig, bad_row: BadRow) -> Iterator[Row]:
    number = 0
    try:
        for number, line in enumerate(_lines(_content(path, file)), start=1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                bad_row(number, "no UTF-8", f"is no UTF-8: {error}")
            except (ValueError, RecursionError) as error:
                bad_row(number, "no JSON", f"is no JSON: {error}")
            else:
                if isinstance(fields, dict):
                    yield number, fields
                else:
                    bad_row(number, "no JSON object", f"is no JSON object but a {type(fields).__name__}")
    except UNPACKING as error:
        bad_row(number + 1, UNREADABLE, f"and what follows cannot be read: {error}")


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    begun: list[bytes] = []
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        begun.append(first)
        if rest:
            line, begun = b"".join(begun), [rest.pop()]  # a long line must not be there twice while it is used
            yield line
            yield from rest
    yield b"".join(begun)


# ---------------------------------------------------------------- columns


def _parquet(path: Path, file: RawFile, corpus: CorpusConfig, bad_row: BadRow) -> Iterator[Row]:
    number = 0
    try:
        # pyarrow's own settings hold a whole column of a row group in memory.
        with pyarrow.parquet.ParquetFile(path, buffer_size=CHUNK, pre_buffer=False) as table:
            columns = _columns(corpus, table.schema_arrow.names)
            groups = [table.metadata.row_group(index) for index in range(table.num_row_groups)]
            largest = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1)
            size = int(min(max(BATCH_BYTES / max(largest, 1), 1), BATCH_ROWS))
            for batch in table.iter_batches(size, columns=columns, use_threads=False):
                yield from _rows_of(batch, number, bad_row)
                number += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        _see_damage(error)
        bad_row(number + 1, UNREADABLE, f"and what follows cannot be read as parquet: {error}")


def _arrow(path: Path, file: RawFile, corpus: CorpusConfig, bad_row: BadRow) -> Iterator[Row]:
    number = 0
    try:
        with pyarrow.OSFile(str(path)) as content:
            for whole in _record_batches(content):
                whole = whole.select(_columns(corpus, whole.schema.names) or whole.schema.names)
                size = int(max(BATCH_BYTES * whole.num_rows / max(whole.nbytes, 1), 1))
                for begin in range(0, whole.num_rows, min(size, BATCH_ROWS)):
                    batch = whole.slice(begin, min(size, BATCH_ROWS))
                    yield from _rows_of(batch, number, bad_row)
                    number += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        _see_damage(error)
        bad_row(number + 1, UNREADABLE, f"and what follows cannot be read as arrow: {error}")


def _record_batches(content: pyarrow.NativeFile) -> Iterator[pyarrow.RecordBatch]:
    """Those of a stream, as `datasets` writes it, or of a file with a directory of them.

    Raises:
        OSError: the stream lacks its end; arrow itself takes one that was cut between two batches for a whole one.
    """
    if content.size() == 0:
        raise OSError("it is empty")
    kind = content.read(len(ARROW_FILE))
    content.seek(0)
    if kind == ARROW_FILE:
        directory = pyarrow.ipc.open_file(content)
        yield from map(directory.get_batch, range(directory.num_record_batches))
        return
    yield from pyarrow.ipc.open_stream(content)
    content.seek(content.size() - len(END_OF_STREAM))
    if content.read() != END_OF_STREAM:
        raise OSError("it ends too early")


def _see_damage(error: Exception) -> None:
    """Go on only if it is the file that is at fault: arrow also raises OSError for what it finds in a file."""
    if getattr(error, "errno", None) or isinstance(error, MemoryError):
        raise error


def _columns(corpus: CorpusConfig, names: list[str]) -> list[str] | None:
    """The columns that are wanted; None, which stands for all, if some are not there, so that rows can tell it."""
    fields = (corpus.text_field, *corpus.keep, *corpus.drop, *filter(None, [corpus.source_field]))
    columns = sorted({name.split(".")[0] for name in fields})
    return columns if set(columns) <= set(names) else None


def _rows_of(batch: pyarrow.RecordBatch, before: int, bad_row: BadRow) -> Iterator[Row]:
    """Rows of a batch that `before` others precede."""
    try:
        yield from enumerate(batch.to_pylist(), start=before + 1)
        return
    except UnicodeDecodeError:
        pass
    for index in range(batch.num_rows):
        try:
            fields = batch.slice(index, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            bad_row(before + index + 1, "no UTF-8", f"is no UTF-8: {error}")
        else:
            yield before + index + 1, fields


# ---------------------------------------------------------------- whole files


def _text(path: Path, file: RawFile, corpus: CorpusConfig, bad_row: BadRow) -> Iterator[Row]:
    try:
        yield 1, {corpus.text_field: b"".join(_content(path, file)).decode("utf-8-sig")}
    except UnicodeDecodeError as error:
        bad_row(1, "no UTF-8", f"is no UTF-8: {error}")
    except UNPACKING as error:
        bad_row(1, UNREADABLE, f"cannot be read: {error}")


# ---------------------------------------------------------------- formats by name, and compression

READERS: dict[RawFormat, Reader] = {
    RawFormat.jsonl: _jsonl,
    RawFormat.parquet: _parquet,
    RawFormat.arrow: _arrow,
    RawFormat.text: _text,
}
SUFFIXES = {
    ".jsonl": RawFormat.jsonl,
    ".parquet": RawFormat.parquet,
    ".arrow": RawFormat.arrow,
    ".txt": RawFormat.text,
    ".md": RawFormat.text,
}
COMPRESSED: dict[str, Callable[[], Any]] = {
    ".gz": partial(zlib.decompressobj, wbits=zlib.MAX_WBITS | 16),  # with gzip's header
    ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
}
UNPACKING = (zstandard.ZstdError, zlib.error, EOFError)


def _format(file: RawFile, corpus: CorpusConfig) -> RawFormat:
    if corpus.format is not RawFormat.auto:
        return corpus.format
    name = file.path
    for compression in COMPRESSED:
        name = name.removesuffix(compression)
    for suffix, known in SUFFIXES.items():
        if name.endswith(suffix):
            return known
    raise ConfigError(
        f"{file.path} is of no known format: names end in {', '.join(SUFFIXES)}, compressed ones in "
        f"{' or '.join(COMPRESSED)} besides; or say what it is: corpora.{corpus.name}.format="
        f"{'|'.join(known.name for known in READERS)}"
    )


def _content(path: Path, file: RawFile) -> Iterator[bytes]:
    """The content of a file in pieces, unpacked as its name says."""
    with path.open("rb") as content:
        for ending, begin in COMPRESSED.items():
            if file.path.endswith(ending):
                yield from _unpacked(iter(partial(content.read, PACKED_CHUNK), b""), begin)
                return
        yield from iter(partial(content.read, CHUNK), b"")


def _unpacked(chunks: Iterator[bytes], begin: Callable[[], Any]) -> Iterator[bytes]:
    """Unpack frame after frame: hubs concatenate them. The libraries' own file readers take a zstd file that was cut
    short for a whole one, and keep back what stands before the cut of a gzip file."""
    frame = None
    for chunk in chunks:
        while chunk:
            frame = frame or begin()
            yield frame.decompress(chunk)
            chunk = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the compressed stream ends too early")
