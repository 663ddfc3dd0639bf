"""The order chain of what the ranks' loaders really delivered."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist

from tinyllama.data.loader import MicroBatch, rank_positions
from tinyllama.planning.chain import extend, rows_of
from tinyllama.planning.order import SampleOrder, Samples
from tinyllama.training.hooks import Hook
from tinyllama.training.metrics import StepReport
from tinyllama.world import World

_PILE_SAMPLES = 2**16
"""After so many samples, of all ranks together, they are folded into the chain if no checkpoint was due before."""


class OrderChain(Hook):
    """Every rank keeps what it read; now and then the main rank gathers it and extends the chain.

    Args:
        chain: as it was before the first step from here.
        device: where the process group communicates.
    """

    def __init__(self, chain: str, order: SampleOrder, batch_samples: int, world: World, device: torch.device):
        self._chain, self._order, self._batch_samples = chain, order, batch_samples
        self._world, self._device = world, device
        self._pile: list[torch.Tensor] = []
        self._begin = self._end = 0

    def after_step(self, report: StepReport, batch: Sequence[MicroBatch]) -> None:
        if not self._pile:
            self._begin = report.before.samples
        self._end = report.progress.samples
        self._pile += [torch.stack([micro.corpus, micro.draw, micro.sample_id], dim=-1) for micro in batch]
        if self._end - self._begin >= _PILE_SAMPLES:
            self._fold()

    def value(self) -> str:
        """The chain after the last step, on the main rank. Collective."""
        self._fold()
        return self._chain

    def _fold(self) -> None:
        """Add what was read since the last time; all ranks have made equally many steps."""
        if not self._pile:
            return
        mine = torch.stack(self._pile).to(self._device)
        everyone = [torch.empty_like(mine) for _ in range(self._world.size)] if self._world.is_main else None
        dist.gather(mine, everyone)
        if everyone is not None:
            read = torch.stack(everyone).cpu().numpy().reshape(-1, 3)[np.argsort(self._positions(mine.shape[1]))]
            rows = rows_of(Samples(*read.T), self._order.names)
            self._chain = extend(self._chain, rows, self._batch_samples)
        self._pile.clear()

    def _positions(self, micro_batch: int) -> np.ndarray:
        """Where in the stage the gathered samples stand: [ranks * passes * micro_batch]."""
        begins = np.arange(self._begin, self._end, self._world.size * micro_batch)
        ranks = [World(rank, self._world.size) for rank in range(self._world.size)]
        lanes = self._order.lanes
        return np.stack(
            [rank_positions(begins, world=rank, micro_batch=micro_batch, lanes=lanes) for rank in ranks]
        ).ravel()
