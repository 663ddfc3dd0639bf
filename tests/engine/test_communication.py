"""What ranks send, counted in the collectives of real engines, against the arithmetic of planning/communication.py."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.distributed import ProcessGroup

from tests.engine import conftest
from tests.engine.conftest import Trainer, cluster
from tests.engine.test_memory import MODEL as LARGE
from tests.matrix import pairs_of
from tinyllama.config.schema import ClusterConfig, Precision
from tinyllama.planning.communication import LAYOUTS, Shape, Work, layout_of
from tinyllama.planning.flops import num_parameters

RANKS, SAMPLES = 4, 8
MODEL = replace(LARGE, num_layers=2, seq_len=8)
COLLECTIVES = {
    "allreduce": 2,
    "all_gather_single": 1,
    "_allgather_base": 1,
    "reduce_scatter_single": 1,
    "_reduce_scatter_base": 1,
    "allgather": 1,
    "reduce_scatter": 1,
    "reduce": 1,
    "broadcast": 1,
}
"""Methods of ProcessGroup by their names in several releases of torch, and the trips of a ring that they take."""
NOT_WORTH_COUNTING = 1000
"""Bytes of a norm or a flag."""


@contextmanager
def counting(sent: Counter[tuple[int, int]]) -> Iterator[None]:
    """Count what is given to collectives meanwhile: bytes by trips and ranks of the group."""
    stock = {name: getattr(ProcessGroup, name) for name in COLLECTIVES if hasattr(ProcessGroup, name)}

    def counted(name: str) -> Callable[..., Any]:
        def call(group: ProcessGroup, *args: Any, **kwargs: Any) -> Any:
            if (size := max(map(bytes_of, args))) > NOT_WORTH_COUNTING:
                sent[COLLECTIVES[name], group.size()] += size
            return stock[name](group, *args, **kwargs)

        return call

    for name in stock:
        setattr(ProcessGroup, name, counted(name))
    try:
        yield
    finally:
        for name, method in stock.items():
            setattr(ProcessGroup, name, method)


def bytes_of(argument: Any) -> int:
    if isinstance(argument, torch.Tensor):
        return argument.nbytes
    return sum(map(bytes_of, argument)) if isinstance(argument, list) else 0


def counted_in_a_step(layout: ClusterConfig) -> Counter[tuple[int, int]]:
    trainer = Trainer(layout, samples=SAMPLES)
    trainer.step(0)
    sent: Counter[tuple[int, int]] = Counter()
    with counting(sent):
        trainer.step(1)
    return sent


@pytest.mark.slow
@pairs_of(
    settings=[
        {"zero_stage": 1},
        {"zero_stage": 2},
        {"zero_stage": 3},
        {"zero_stage": 3, "shard_within_node": True},
    ],
    precision=[Precision.fp32, Precision.bf16],
    micro_batch=[1, 2],
)
def test_a_step_sends_what_the_arithmetic_says(
    settings: dict[str, Any], precision: Precision, micro_batch: int, in_ranks: Callable[..., list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in (("MODEL", MODEL), ("VOCAB", MODEL.vocab_size), ("SEQ", MODEL.seq_len)):
        monkeypatch.setattr(conftest, name, value)
    layout = cluster(**settings, precision=precision, micro_batch=micro_batch, nodes=2, processes=2)
    counts = in_ranks(RANKS, counted_in_a_step, layout)

    shape = Shape(nodes=2, local=2)
    weight_bytes = 2 if precision is Precision.bf16 else 4
    work = Work(num_parameters(MODEL), weight_bytes, accumulation=SAMPLES // RANKS // micro_batch)
    expected: Counter[tuple[int, int]] = Counter()
    for each in LAYOUTS[layout_of(layout, shape)](work, shape):
        expected[each.trips, shape.local if each.within_node else shape.ranks] += each.payload
    expected = +expected
    for sent in counts:
        assert sent.keys() == expected.keys()
        for kind, size in expected.items():
            assert sent[kind] == pytest.approx(size, rel=0.001), kind
