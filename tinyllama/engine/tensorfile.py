"""A safetensors file of fp32 tensors that all ranks write together, each the fragments that it keeps.

Nothing is gathered and no rank ever holds a whole tensor; any safetensors reader reads the result.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tinyllama.errors import DamageError

Shapes = Mapping[str, tuple[int, ...]]

_ITEM_BYTES = 4
_LENGTH_BYTES = 8  # the file opens with the header's length, little-endian


class Piece(NamedTuple):
    """Consecutive elements of one flattened tensor, the first of them at `offset`."""

    name: str
    offset: int
    values: Tensor


def write(path: Path, shapes: Shapes, pieces: Iterable[Piece]) -> None:
    """Put the pieces in their places and force them to the disk; the file is made by whoever comes first.

    What nobody writes is zero.
    """
    header, starts, end = _layout(shapes)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        file.write(header)  # the same from every rank, as is the size
        file.truncate(end)
        for piece in pieces:
            file.seek(starts[piece.name] + piece.offset * _ITEM_BYTES)
            file.write(piece.values.detach().float().cpu().contiguous().numpy().data)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, shapes: Shapes) -> dict[str, Tensor]:
    """The tensors, flat, as views of the mapped file: only what is copied out of them is read.

    Raises:
        DamageError: the file is missing, or is not one of tensors of these names and shapes.
    """
    header, starts, end = _layout(shapes)
    if not path.is_file():
        raise DamageError(f"{path} is missing")
    with path.open("rb") as file:
        same = file.read(len(header)) == header
    if not same or path.stat().st_size != end:
        raise DamageError(f"{path} does not hold the weights of this model: names, shapes or size differ")
    content = torch.from_file(str(path), shared=False, size=end, dtype=torch.uint8)
    return {
        name: content[start : start + math.prod(shapes[name]) * _ITEM_BYTES].view(torch.float32)
        for name, start in starts.items()
    }


def size(shapes: Shapes) -> int:
    """Of the whole file, in bytes."""
    return _layout(shapes)[2]


def _layout(shapes: Shapes) -> tuple[bytes, dict[str, int], int]:
    """The header, where in the file each tensor starts, and the size of the whole, in bytes."""
    entries: dict[str, dict[str, object]] = {}
    begins: dict[str, int] = {}
    end = 0
    for name, shape in shapes.items():
        begins[name], end = end, end + math.prod(shape) * _ITEM_BYTES
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begins[name], end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # the data must be aligned
    header = len(text).to_bytes(_LENGTH_BYTES, "little") + text
    return header, {name: len(header) + begin for name, begin in begins.items()}, len(header) + end
