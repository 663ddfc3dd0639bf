"""A process group of one, since writing a checkpoint is collective, and states to write."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from tests.engine.conftest import in_ranks  # noqa: F401
from tinyllama.engine.snapshot import KINDS, Snapshot
from tinyllama.engine.tensorfile import Piece
from tinyllama.planning.progress import Progress


def at(tokens: int) -> Progress:
    """After batches of ten samples of one token."""
    return Progress(step=tokens // 10, samples=tokens, tokens=tokens)


def snapshot() -> Snapshot:
    """The whole state of a model with one parameter."""
    values = {kind: torch.full((300,), 1.0 + place) for place, kind in enumerate(KINDS)}
    return Snapshot({"w": (3, 100)}, {kind: [Piece("w", 0, each)] for kind, each in values.items()}, steps=7)


@pytest.fixture(autouse=True)
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
