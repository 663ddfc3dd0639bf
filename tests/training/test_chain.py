"""The order chain of what ranks read, gathered from real ranks."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tinyllama.data.loader import MicroBatch, rank_positions
from tinyllama.engine import startup
from tinyllama.planning.chain import ROOT, planned_chain
from tinyllama.planning.mixture import Mixture
from tinyllama.planning.order import SampleOrder
from tinyllama.training import chain as module
from tinyllama.training.chain import OrderChain
from tinyllama.world import World

BATCH, STEPS = 24, 20
MIXTURE = Mixture(["a", "b"], [(0, {"a": 3, "b": 1})])


def order_of(lanes: int) -> SampleOrder:
    return SampleOrder(MIXTURE, {"a": [20] * 5, "b": [7] * 9}, seed=1, lanes=lanes)


def read(order: SampleOrder, world: World, micro_batch: int, step: int) -> list[MicroBatch]:
    """What the loader gives this rank for a step."""
    begins = np.arange(step * BATCH, (step + 1) * BATCH, world.size * micro_batch)
    micro_batches = []
    for positions in rank_positions(begins, world=world, micro_batch=micro_batch, lanes=order.lanes):
        found = order.samples(positions)
        arrays = (found.corpus, found.draw, found.sample_id)
        micro_batches.append(MicroBatch(torch.zeros(micro_batch, 3), *map(torch.from_numpy, arrays)))
    return micro_batches


def report(step: int) -> SimpleNamespace:
    return SimpleNamespace(
        before=SimpleNamespace(samples=step * BATCH), progress=SimpleNamespace(samples=(step + 1) * BATCH)
    )


def chain_in_ranks(folder: Path, processes: int, micro_batch: int, lanes: int, spoil: bool = False) -> str:
    """The chain after all steps, with a look at it after the seventh, of so many real processes."""

    def main() -> None:
        torch.distributed.init_process_group("gloo")
        world = World.from_environment()
        order = order_of(lanes)
        chain = OrderChain(ROOT, order, BATCH, world, torch.device("cpu"))
        for step in range(STEPS):
            batch = read(order, world, micro_batch, step)
            if spoil and step == 3 and world.rank == world.size - 1:
                batch[-1].sample_id[-1] ^= 1
            chain.after_step(report(step), batch)
            if step == 6:
                chain.value()
        value = chain.value()
        torch.distributed.destroy_process_group()
        if world.is_main:
            (folder / "chain").write_text(value)

    assert startup.run_ranks(main, (), processes) == 0
    return (folder / "chain").read_text()


@pytest.mark.parametrize("processes, micro_batch, lanes", [(1, 4, 1), (2, 3, 1), (4, 6, 1), (2, 4, 3), (4, 2, 2)])
def test_the_chain_of_any_world_is_that_of_the_plan(tmp_path, monkeypatch, processes, micro_batch, lanes):
    monkeypatch.setattr(module, "_PILE_SAMPLES", 3 * BATCH)  # so that piles are folded between looks as well
    planned = dict(planned_chain(order_of(lanes), BATCH, 0, [STEPS * BATCH], ROOT))[STEPS * BATCH]
    assert chain_in_ranks(tmp_path, processes, micro_batch, lanes) == planned


def test_one_other_sample_on_one_rank_makes_another_chain(tmp_path):
    planned = dict(planned_chain(order_of(1), BATCH, 0, [STEPS * BATCH], ROOT))[STEPS * BATCH]
    assert chain_in_ranks(tmp_path, 2, 3, 1, spoil=True) != planned
