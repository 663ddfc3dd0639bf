"""The weights of a checkpoint as safetensors files under Hugging Face's names: tensor by tensor, never all at once."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tinyllama.config.schema import ExportPrecision, ModelConfig
from tinyllama.engine import tensorfile
from tinyllama.engine.tensorfile import Shapes
from tinyllama.errors import ConfigError
from tinyllama.model.hf import to_hf

DTYPES = {
    ExportPrecision.bf16: torch.bfloat16,
    ExportPrecision.fp16: torch.float16,
    ExportPrecision.fp32: torch.float32,
}
INDEX = "model.safetensors.index.json"

_CODES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
_LENGTH_BYTES = 8  # a file opens with the header's length, little-endian


@dataclass(frozen=True)
class Weights:
    """Those of a checkpoint, by our names. The file is mapped anew for each, so that no page of it stays in memory."""

    path: Path
    shapes: Shapes

    def __getitem__(self, name: str) -> Tensor:
        return tensorfile.read(self.path, self.shapes)[name].view(self.shapes[name])


def write_weights(weights: Weights, config: ModelConfig, dtype: torch.dtype, limit_bytes: float, folder: Path) -> None:
    """One file, or several and their index where one would be longer than the limit.

    A tensor that is longer than the limit has a file of its own.

    Raises:
        ConfigError: a weight is beyond what `dtype` can hold.
    """
    shards = _divide(weights.shapes, config, dtype, limit_bytes)
    tensors = _converted(weights, config, dtype)
    if len(shards) == 1:
        _write_file(folder / "model.safetensors", shards[0], dtype, tensors)
        return
    places: dict[str, str] = {}
    for number, shapes in enumerate(shards, start=1):
        path = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(path, shapes, dtype, tensors)
        places |= dict.fromkeys(shapes, path.name)
    total = sum(_bytes(shape, dtype) for shapes in shards for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _divide(shapes: Shapes, config: ModelConfig, dtype: torch.dtype, limit_bytes: float) -> list[dict[str, torch.Size]]:
    """What each file holds, in the order of our parameters."""
    whole = to_hf({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, config)
    shards: list[dict[str, torch.Size]] = [{}]
    used = 0
    for name, tensor in whole.items():
        size = _bytes(tensor.shape, dtype)
        if shards[-1] and used + size > limit_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = tensor.shape
        used += size
    return shards


def _converted(weights: Weights, config: ModelConfig, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Their names and the values, rounded to the nearest that `dtype` has."""
    for name in weights.shapes:
        values = weights[name]
        # Rounding keeps the order, so that the least and the greatest tell of all; where there is a NaN they are NaN.
        if not torch.stack(values.aminmax()).to(dtype).isfinite().all():
            raise _beyond(name, values, dtype)
        yield from to_hf({name: values.to(dtype)}, config).items()


def _beyond(name: str, values: Tensor, dtype: torch.dtype) -> ConfigError:
    largest = float(values.abs().max())
    if not math.isfinite(largest):
        return ConfigError(f"{name} has values that are not finite; choose an earlier checkpoint: at_tokens=...")
    return ConfigError(
        f"export.dtype={next(key.value for key, value in DTYPES.items() if value is dtype)} holds values up to "
        f"{torch.finfo(dtype).max:g}, and {name} has one of {largest:g}; set export.dtype=fp32"
        + (" or bf16" if dtype is torch.float16 else "")
    )


def _write_file(
    path: Path, shapes: Mapping[str, torch.Size], dtype: torch.dtype, tensors: Iterator[tuple[str, Tensor]]
) -> None:
    """The next of the tensors, which are those of `shapes` in their order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + _bytes(shape, dtype)
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # the data must be aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        for expected in shapes:
            name, tensor = next(tensors)
            assert name == expected, f"{name} came where {expected} was due"
            file.write(tensor.contiguous().view(torch.uint8).numpy().data)


def _bytes(shape: torch.Size, dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize
