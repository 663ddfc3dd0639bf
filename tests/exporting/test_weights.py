"""Weights as safetensors under Hugging Face's names: the right values, in files of the right size."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.laid import random_weights, write_weights
from tinyllama.config.schema import RunConfig
from tinyllama.errors import ConfigError
from tinyllama.exporting.weights import INDEX, Weights
from tinyllama.exporting.weights import write_weights as export_weights
from tinyllama.model.hf import to_hf
from tinyllama.model.llama import parameter_shapes


@pytest.fixture
def config(compose: Callable[..., tuple[RunConfig, ...]]) -> RunConfig:
    sizes = ["vocab_size=96", "hidden_size=16", "intermediate_size=24", "num_layers=3", "num_heads=4"]
    return compose("+scale=demo", *(f"model.{size}" for size in sizes))[-1]


@pytest.fixture
def checkpoint(config: RunConfig, tmp_path: Path) -> Callable[[dict[str, torch.Tensor]], Weights]:
    """checkpoint(tensors) -> those tensors as a checkpoint's file has them."""

    def write(tensors: dict[str, torch.Tensor]) -> Weights:
        path = tmp_path / "weights.safetensors"
        write_weights(path, config, tensors.items())
        return Weights(path, parameter_shapes(config.model))

    return write


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("limit", [5_000, 10**9])
def test_files_hold_every_tensor_rounded_to_nearest(config, checkpoint, tmp_path, dtype, limit) -> None:
    tensors = dict(random_weights(config, seed=1))
    folder = tmp_path / "out"
    folder.mkdir()
    export_weights(checkpoint(tensors), config.model, dtype, limit, folder)
    found = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    wanted = {name: tensor.to(dtype) for name, tensor in to_hf(tensors, config.model).items()}
    assert found.keys() == wanted.keys()
    assert all(found[name].dtype == dtype and torch.equal(found[name], wanted[name]) for name in wanted)


def test_several_files_keep_to_the_limit_and_the_index_tells_where_each_tensor_is(config, checkpoint, tmp_path) -> None:
    tensors, limit = dict(random_weights(config, seed=1)), 5_000
    folder = tmp_path / "out"
    folder.mkdir()
    export_weights(checkpoint(tensors), config.model, torch.bfloat16, limit, folder)
    index, files = json.loads((folder / INDEX).read_text()), sorted(folder.glob("*.safetensors"))
    assert len(files) > 2
    assert [path.name for path in files] == [
        f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)
    ]
    for path in files:
        held = load_file(path)
        assert sum(tensor.nbytes for tensor in held.values()) <= limit
        assert all(index["weight_map"][name] == path.name for name in held)
    assert index["metadata"]["total_size"] == sum(2 * tensor.numel() for tensor in tensors.values())


def test_what_fits_is_one_file_without_an_index_that_says_it_is_for_torch(config, checkpoint, tmp_path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    export_weights(checkpoint(dict(random_weights(config, seed=1))), config.model, torch.bfloat16, 10**9, folder)
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_weight_beyond_fp16_is_refused_by_name(config, checkpoint, tmp_path) -> None:
    tensors = dict(random_weights(config, seed=1))
    tensors["blocks.1.attention.qkv.weight"][3, 5] = 70_000
    with pytest.raises(ConfigError, match=r"export.dtype=fp16 .* up to 65504, and blocks.1.attention.qkv.weight has"):
        export_weights(checkpoint(tensors), config.model, torch.float16, 10**9, tmp_path)


def test_weights_that_are_no_numbers_are_refused_by_name(config, checkpoint, tmp_path) -> None:
    tensors = dict(random_weights(config, seed=1))
    tensors["norm.weight"][0] = torch.nan
    with pytest.raises(ConfigError, match=r"norm.weight has values that are not finite; choose an earlier"):
        export_weights(checkpoint(tensors), config.model, torch.bfloat16, 10**9, tmp_path)
