"""metrics.jsonl as arrays. By Arrow's reader, which takes a tenth of the time that Python's json does."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.json

from tinyllama.reporting.pages.family import Remark, Steps

_BLOCK_BYTES = 16 << 20
_NUMBERS = ("time", "loss", "learning_rate", "grad_norm", "tokens_per_second", "data_wait", "mfu")
_WORDS = ("skipped", "unusual")
_SCHEMA = pa.schema(
    [
        *((name, pa.int64()) for name in ("step", "tokens")),
        *((name, pa.float64()) for name in _NUMBERS),
        *((name, pa.string()) for name in _WORDS),
    ]
)


def read_journal(path: Path) -> tuple[Steps, tuple[Remark, ...], int]:
    """Steps, remarks, and how many lines could not be read. The last line may be half written: it counts as none."""
    content = path.read_bytes() if path.is_file() else b""
    content = content[: content.rfind(b"\n") + 1]
    unreadable = 0
    try:
        table = _parse(content)
    except pa.ArrowInvalid:
        lines = content.splitlines(keepends=True)
        readable = [line for line in lines if _is_step(line)]
        unreadable, table = len(lines) - len(readable), _parse(b"".join(readable))
    steps = Steps(
        table["step"].to_numpy(),
        table["tokens"].to_numpy(),
        table["time"].to_numpy(),
        {name: values for name, values in _values(table) if np.isfinite(values).any()},
    )
    return steps, tuple(_remarks(table)), unreadable


def _parse(content: bytes) -> pa.Table:
    """With the fields of groups beside the others, as "validation.skypile"."""
    if not content:
        return _SCHEMA.empty_table()
    options = pa.json.ReadOptions(block_size=max(_BLOCK_BYTES, 1 + content.index(b"\n")))
    table = pa.json.read_json(
        pa.BufferReader(content), options, pa.json.ParseOptions(explicit_schema=_SCHEMA, newlines_in_values=False)
    )
    return table.flatten()


def _values(table: pa.Table) -> Iterator[tuple[str, np.ndarray]]:
    for field in table.schema:
        is_number = pa.types.is_floating(field.type) or pa.types.is_integer(field.type)
        if is_number and field.name not in ("step", "time"):
            group, dot, member = field.name.partition(".")
            yield f"{group}/{member}" if dot else group, table[field.name].to_numpy().astype(np.float64)


def _remarks(table: pa.Table) -> Iterator[Remark]:
    for word in _WORDS:
        rows = table.filter(pa.compute.is_valid(table[word])).select(["step", "tokens", word, "loss"]).to_pylist()
        for row in rows:
            yield Remark(row["step"], row["tokens"], word == "skipped", row[word], row["loss"])


def _is_step(line: bytes) -> bool:
    try:
        step = json.loads(line)
    except ValueError:
        return False
    return isinstance(step, dict) and {"step", "tokens"} <= set(step)
