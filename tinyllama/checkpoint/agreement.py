"""What one rank finds out and all must know."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from tinyllama.world import World

T = TypeVar("T")

_PULSE_SECONDS = 1.0
"""The others wait in collectives of about this length, so that the work may take longer than one may."""


def from_main(world: World, work: Callable[[], T]) -> T:
    """What `work` returns on the main rank, where alone it is called. Collective.

    Raises:
        Exception: what it raised there, on every rank.
    """
    if world.size == 1:
        return work()
    outcomes: list[tuple[T | None, BaseException | None]] = []
    thread = threading.Thread(target=lambda: outcomes.append(_outcome(work)), daemon=True)
    if world.is_main:
        thread.start()
    told: list[Any] = [None]
    while told[0] is None:
        if world.is_main:
            thread.join(_PULSE_SECONDS)
            told = [outcomes[0] if outcomes else None]
        dist.broadcast_object_list(told)
    result, error = told[0]
    if error is not None:
        raise error
    return result


def _outcome(work: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """Result and error."""
    try:
        return work(), None
    except BaseException as error:
        return None, error
