"""MosaicML streaming as the store under our own order: MDS shards, fetched, cached and evicted once per node.

Its own order, its start-up (which grows with the number of samples) and its names for shared memory are left aside.
That takes some module globals swapped while its constructor runs; they are private, so the version is pinned, and a
test says when they move.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from tinyllama.data import shared_memory
from tinyllama.data.mds import Stream, StreamingDataset, StreamingWorld, dataset_module, reader_module
from tinyllama.planning.order import Samples
from tinyllama.world import World

_DOWNLOADS = 4
"""Shards that one reader fetches at a time."""


class ShardStore:
    """The training shards of some corpora, any sample at any time. Ranks of a node share what is cached.

    Every rank must construct it at the same point: it waits for the others.

    Args:
        folders: where each corpus lies, or is cached if it has a remote.
        run_id: distinguishes runs that share a node.
        remotes: where corpora are fetched from; they are in their folders if not given.
        cache_limit: bytes on each node, in all.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        *,
        world: World,
        run_id: str,
        remotes: Mapping[str, str] | None = None,
        cache_limit: int | None = None,
    ):
        self._leads_node = world.local_rank == 0
        self._prefix = shared_memory.prefix(run_id, folders.values(), node=world.rank // world.local_size)
        self._is_remote = bool(remotes)
        streams = [Stream(remote=(remotes or {}).get(name), local=str(folder)) for name, folder in folders.items()]
        # Who leads a node makes all that is shared there, and so owns it; the others find it made. The constructor ends
        # with a barrier, so each rank meets the others twice.
        if self._leads_node:
            shared_memory.remove(self._prefix)
        else:
            _barrier()
        with (
            _swapped(
                dataset_module,
                World=SimpleNamespace(detect=lambda: _streaming_world(world)),
                maybe_init_dist=lambda: False,
                get_shm_prefix=lambda *_: (self._prefix, None),
                Spanner=ShardFinder,
            ),
            _swapped(reader_module, deepcopy=dict),  # of the index, shard by shard: three quarters of the start-up
        ):
            self._dataset = StreamingDataset(streams=streams, batch_size=1, cache_limit=cache_limit, predownload=1)
        if self._leads_node:
            _barrier()
        self._offsets: list[int] = self._dataset.sample_offset_per_stream.tolist()
        sizes = np.split(self._dataset.samples_per_shard, self._dataset.shard_offset_per_stream[1:])
        self.shard_samples: dict[str, NDArray[np.int64]] = dict(zip(folders, sizes, strict=True))

    def tokens(self, corpus: int, sample_id: int) -> NDArray[Any]:
        """The sample, [seq_len + 1] of uint16 or uint32; corpora are numbered in the order of `folders`.

        Fetches the shard if it is not here.
        """
        tokens: NDArray[Any] = self._dataset.get_item(self._offsets[corpus] + sample_id)["tokens"]
        return tokens

    def arrived(self, chunks: Iterable[Samples]) -> Iterator[Samples]:
        """The same chunks, each once its shards are on this machine; those of the next are fetched meanwhile."""
        if not self._is_remote:
            yield from chunks
            return
        waiting: deque[tuple[Samples, list[Future[None]]]] = deque()
        with ThreadPoolExecutor(_DOWNLOADS) as pool:
            for chunk in chunks:
                waiting.append(
                    (chunk, [pool.submit(self._dataset.prepare_shard, each) for each in self._shards(chunk)])
                )
                if len(waiting) == 2:
                    yield _awaited(*waiting.popleft())
            yield from (_awaited(*each) for each in waiting)

    def close(self) -> None:
        """Leave no shared memory behind; called by every rank when it has read its last sample."""
        if self._leads_node:
            shared_memory.remove(self._prefix)

    def _shards(self, samples: Samples) -> list[int]:
        ids = np.unique(np.asarray(self._offsets)[samples.corpus] + samples.sample_id)
        return sorted({self._dataset.spanner[sample_id][0] for sample_id in ids.tolist()})


class ShardFinder:
    """Sample id -> (shard, place in it), by bisection; stands in for streaming's table of all samples."""

    def __init__(self, shard_samples: NDArray[np.int64]):
        self._ends: list[int] = np.cumsum(shard_samples).tolist()

    def __getitem__(self, sample_id: int) -> tuple[int, int]:
        if not 0 <= sample_id < self._ends[-1]:
            raise IndexError(f"sample {sample_id} of {self._ends[-1]}")
        shard = bisect_right(self._ends, sample_id)
        return shard, sample_id - (self._ends[shard - 1] if shard else 0)


def _awaited(chunk: Samples, downloads: list[Future[None]]) -> Samples:
    for download in downloads:
        download.result()
    return chunk


def _streaming_world(world: World) -> StreamingWorld:
    return StreamingWorld(
        num_nodes=world.size // world.local_size,
        ranks_per_node=world.local_size,
        workers_per_rank=1,
        worker=world.rank,
    )


def _barrier() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


@contextmanager
def _swapped(module: ModuleType, **replacements: Any) -> Iterator[None]:
    """Replace globals of a module for a while."""
    stock = {name: getattr(module, name) for name in replacements}
    vars(module).update(replacements)
    try:
        yield
    finally:
        vars(module).update(stock)
