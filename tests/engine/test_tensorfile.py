"""Files written piece by piece, read by ourselves and by the safetensors library."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tinyllama.engine import tensorfile
from tinyllama.engine.tensorfile import Piece
from tinyllama.errors import DamageError


@given(
    shapes=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple), min_size=1, max_size=5),
    cuts=st.lists(st.integers(0, 200), max_size=6),
)
def test_pieces_cut_anywhere_and_written_in_any_order_make_the_whole(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[tuple[int, ...]], cuts: list[int]
) -> None:
    tensors = {f"name.{index}": torch.randn(shape) for index, shape in enumerate(shapes)}
    layout = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    path = tmp_path_factory.mktemp("file") / "tensors.safetensors"
    for name, tensor in reversed(tensors.items()):
        borders = sorted({0, tensor.numel(), *(cut % tensor.numel() for cut in cuts)})
        pieces = [
            Piece(name, begin, tensor.flatten()[begin:end]) for begin, end in zip(borders, borders[1:], strict=False)
        ]
        tensorfile.write(path, layout, reversed(pieces))
    by_library, by_us = load_file(path), tensorfile.read(path, layout)
    assert path.stat().st_size == tensorfile.size(layout)
    assert by_library.keys() == by_us.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(by_library[name], tensor)
        assert torch.equal(by_us[name], tensor.flatten())


def test_writers_of_one_file_do_not_undo_each_other(tmp_path: Path) -> None:
    """They come at the same time, as ranks do, and none makes the file for the others."""
    shapes = {"a": (40_000,), "b": (300, 100)}
    values = {name: torch.randn(math.prod(shape)) for name, shape in shapes.items()}
    borders = range(0, 30_000, 100)
    pieces = [Piece(name, begin, values[name][begin : begin + 100]) for name in shapes for begin in borders]
    pieces.append(Piece("a", 30_000, values["a"][30_000:]))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda part: tensorfile.write(tmp_path / "file", shapes, pieces[part::8]), range(8)))
    found = load_file(tmp_path / "file")
    assert all(torch.equal(found[name].flatten(), values[name]) for name in shapes)


def test_what_was_not_written_is_zero(tmp_path: Path) -> None:
    shapes = {"a": (3,), "b": (2, 2)}
    tensorfile.write(tmp_path / "file", shapes, [Piece("b", 1, torch.ones(2))])
    assert tensorfile.read(tmp_path / "file", shapes)["a"].tolist() == [0, 0, 0]
    assert tensorfile.read(tmp_path / "file", shapes)["b"].tolist() == [0, 1, 1, 0]


def test_reading_does_not_open_the_file_for_change(tmp_path: Path) -> None:
    shapes = {"a": (3,)}
    tensorfile.write(tmp_path / "file", shapes, [])
    before = (tmp_path / "file").read_bytes()
    tensorfile.read(tmp_path / "file", shapes)["a"].fill_(7)
    assert (tmp_path / "file").read_bytes() == before


@pytest.mark.parametrize("shapes", [{"a": (4,)}, {"b": (3,)}, {"a": (3,), "b": (1,)}])
def test_a_file_of_other_tensors_is_refused(tmp_path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    tensorfile.write(tmp_path / "file", {"a": (3,)}, [])
    with pytest.raises(DamageError, match="does not hold the weights of this model"):
        tensorfile.read(tmp_path / "file", shapes)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    tensorfile.write(tmp_path / "file", {"a": (3,)}, [])
    with (tmp_path / "file").open("r+b") as file:
        file.truncate((tmp_path / "file").stat().st_size - 1)
    with pytest.raises(DamageError, match="does not hold"):
        tensorfile.read(tmp_path / "file", {"a": (3,)})
