"""Raw corpus files -> documents: one reader per format, then the corpus's own filters. Memory stays bounded."""

import glob
import gzip
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import zstandard

from tinyllama.config.schema import CorpusConfig
from tinyllama.errors import ConfigError

CHUNK = 1 << 20
PARQUET_ROWS = 256


@dataclass(frozen=True)
class Document:
    """A text that passed the filters; `source` is its file and line (parquet: row), for messages."""

    text: str
    source: str


Row = tuple[str, Mapping[str, Any]]
"""Where a row stands, and its fields."""


def find_files(corpus: CorpusConfig) -> list[Path]:
    """The raw files of a corpus, in the order of its globs and by name within each.

    Raises:
        ConfigError: a glob matches nothing.
    """
    found: dict[Path, None] = {}
    for pattern in corpus.files:
        matches = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
        if not matches:
            raise ConfigError(
                f"corpora.{corpus.name}.files={pattern} matches no file; put the corpus there, "
                "or build the demo's: python -m tinyllama.sample +scale=demo"
            )
        found.update(dict.fromkeys(map(Path, matches)))
    return list(found)


def read_documents(path: Path, corpus: CorpusConfig, skipped: Counter[str]) -> Iterator[Document]:
    """Documents of one raw file in their order; what is left out is counted in `skipped` by reason.

    Raises:
        ConfigError: a line is no JSON object, a field is missing or no text, or the file is damaged or cut short.
    """
    for place, fields in _reader(path)(path, corpus):
        reason = _refused(fields, corpus, place)
        text = "" if reason else _text(fields, corpus, place)
        if not text:
            skipped[reason or "empty"] += 1
            continue
        yield Document(text, place)


def _jsonl(path: Path, chunks: Iterator[bytes]) -> Iterator[Row]:
    lines = _lines(chunks)
    number = 0
    while True:
        try:
            line = next(lines, None)
        except (zstandard.ZstdError, zlib.error, EOFError, OSError) as error:
            raise ConfigError(f"{path}:{number + 1} cannot be read: {error}; fetch the file again") from error
        if line is None:
            return
        number += 1
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}:{number} is no JSON: {error}; mend or remove the line") from error
        if not isinstance(fields, dict):
            raise ConfigError(f"{path}:{number} is no JSON object but a {type(fields).__name__}; mend or remove it")
        yield f"{path}:{number}", fields


def _read_plain(path: Path, corpus: CorpusConfig) -> Iterator[Row]:
    with path.open("rb") as file:
        yield from _jsonl(path, iter(lambda: file.read(CHUNK), b""))


def _read_gzip(path: Path, corpus: CorpusConfig) -> Iterator[Row]:
    with gzip.open(path, "rb") as file:
        yield from _jsonl(path, iter(lambda: file.read(CHUNK), b""))


def _read_zstd(path: Path, corpus: CorpusConfig) -> Iterator[Row]:
    with path.open("rb") as file:
        yield from _jsonl(path, _unzstd(iter(lambda: file.read(CHUNK), b"")))


def _read_parquet(path: Path, corpus: CorpusConfig) -> Iterator[Row]:
    columns = sorted({name.split(".")[0] for name in (corpus.text_field, *corpus.keep, *corpus.drop)})
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise ConfigError(
                    f"{path} has no column {missing[0]} that corpora.{corpus.name} reads; "
                    f"its columns: {', '.join(file.schema_arrow.names)}"
                )
            row = 0
            for batch in file.iter_batches(PARQUET_ROWS, columns=columns):
                for fields in batch.to_pylist():
                    row += 1
                    yield f"{path}:{row}", fields
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{path} is no readable parquet file: {error}; fetch it again") from error


READERS: dict[str, Callable[[Path, CorpusConfig], Iterator[Row]]] = {
    ".jsonl": _read_plain,
    ".jsonl.gz": _read_gzip,
    ".jsonl.zst": _read_zstd,
    ".parquet": _read_parquet,
}


def _reader(path: Path) -> Callable[[Path, CorpusConfig], Iterator[Row]]:
    for suffix, reader in READERS.items():
        if path.name.endswith(suffix):
            return reader
    raise ConfigError(f"{path} is of no known format; a corpus's files end in {', '.join(READERS)}")


def _unzstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress frame after frame: hubs concatenate them, and the library's own file reader stops after the first
    and takes a file that was cut short for a whole one."""
    context = zstandard.ZstdDecompressor()
    frame = None
    for chunk in chunks:
        while chunk:
            frame = frame or context.decompressobj()
            yield frame.decompress(chunk)
            chunk = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the compressed stream ends too early")


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    begun: list[bytes] = []
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        begun.append(first)
        if rest:
            yield b"".join(begun)
            yield from rest[:-1]
            begun = [rest[-1]]
    yield b"".join(begun)


def _refused(fields: Mapping[str, Any], corpus: CorpusConfig, place: str) -> str | None:
    """Why the corpus's filters leave a row out; None when they keep it."""
    for name, values in corpus.keep.items():
        if (value := str(_field(fields, name, place, f"corpora.{corpus.name}.keep"))) not in values:
            return f"{name}={value} is not kept"
    for name, values in corpus.drop.items():
        if (value := str(_field(fields, name, place, f"corpora.{corpus.name}.drop"))) in values:
            return f"{name}={value} is dropped"
    return None


def _text(fields: Mapping[str, Any], corpus: CorpusConfig, place: str) -> str:
    text = _field(fields, corpus.text_field, place, f"corpora.{corpus.name}.text_field")
    if text is None:
        return ""
    if not isinstance(text, str):
        raise ConfigError(f"{place}: {corpus.text_field} is no text but a {type(text).__name__}")
    # JSON can hold half of a surrogate pair, which no tokenizer takes.
    return text.encode("utf-8", "replace").decode("utf-8")


def _field(fields: Mapping[str, Any], dotted: str, place: str, setting: str) -> Any:
    value: Any = fields
    for name in dotted.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise ConfigError(f"{place}: {setting} names {dotted}, which this row lacks; it has {', '.join(fields)}")
        value = value[name]
    return value
