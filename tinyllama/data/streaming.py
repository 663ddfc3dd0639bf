"""MosaicML streaming as the store under our own order: MDS shards, fetched, cached, verified and evicted once per node.

Its own order, its start-up (which grows with the number of samples) and its names for shared memory are left aside.
That takes some module globals swapped while its constructor runs; they are private, so the version is pinned, and a
test says when they move.
"""

import logging
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from tinyllama.data import shared_memory
from tinyllama.data.cache import DOWNLOADS
from tinyllama.data.disk import is_full
from tinyllama.data.integrity import Unsound, bears, examine, read_sample, shard_path
from tinyllama.data.mds import (
    ShardState,
    SharedArray,
    StreamingDataset,
    StreamingWorld,
    dataset_module,
    reader_module,
)
from tinyllama.data.remote import ARRIVALS, PATIENCE_SECONDS, CorpusStream
from tinyllama.errors import DamageError
from tinyllama.planning.order import Samples
from tinyllama.units import format_bytes
from tinyllama.world import World

log = logging.getLogger(__name__)

_READS = 8
"""How often a sample is read whose shard is evicted or replaced each time before it is."""
_UNKNOWN, _CLAIMED = 0, 1
"""In place of the mark of a shard: nobody has looked at it, or somebody is about to."""


class ShardStore:
    """The training shards of some corpora, any sample at any time. Ranks of a node share what is cached.

    Every rank must construct it at the same point: it waits for the others.

    Args:
        folders: where each corpus lies, or is cached if it has a remote.
        run_id: distinguishes runs that share a node.
        remotes: where corpora are fetched from, all of them; they are in their folders if not given.
        cache_limit: bytes on each node, in all.
        patience_seconds: how long a remote that fails is asked again.

    Raises:
        DamageError: an index is missing or cannot be understood.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        *,
        world: World,
        run_id: str,
        remotes: Mapping[str, str] | None = None,
        cache_limit: int | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ):
        # What is evicted must be on a remote.
        assert remotes is None or set(folders) <= set(remotes), f"{sorted(remotes)} are not all of {sorted(folders)}"
        self._leads_node = world.local_rank == 0
        self._prefix = shared_memory.prefix(run_id, folders.values(), node=world.rank // world.local_size)
        self._is_remote = bool(remotes)
        self._closing = Event()
        streams = [
            CorpusStream(name, folder, (remotes or {}).get(name), patience_seconds, self._closing)
            for name, folder in folders.items()
        ]
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
        # The mark of each shard that was found sound on this node, by whichever process.
        self._shared_marks = SharedArray(self._dataset.num_shards, np.int64, shared_memory.marks(self._prefix))
        self._marks = self._shared_marks.numpy()
        if self._leads_node:
            _barrier()
        self._offsets: list[int] = self._dataset.sample_offset_per_stream.tolist()
        sizes = np.split(self._dataset.samples_per_shard, self._dataset.shard_offset_per_stream[1:])
        self.shard_samples: dict[str, NDArray[np.int64]] = dict(zip(folders, sizes, strict=True))

    def tokens(self, corpus: int, sample_id: int) -> NDArray[Any]:
        """The sample, [seq_len + 1] of uint16 or uint32; corpora are numbered in the order of `folders`.

        Fetches and verifies the shard if it is not here, or is not the file any more that was verified.

        Raises:
            DamageError: the shard cannot be had as its index describes it.
        """
        shard, place = self._dataset.spanner[self._offsets[corpus] + sample_id]
        for _ in range(_READS):
            tokens = read_sample(self._dataset.shards[shard], place, int(self._marks[shard]))
            if tokens is not None:
                self._dataset._shard_access_times[shard] = time.time_ns()  # the coldest is evicted first
                return tokens
            self._bring(shard)
        raise DamageError(
            f"{self._name(shard)} was removed or replaced {_READS} times while it was read; stop what writes there, or "
            "give the cache more room"
        )

    def arrived(self, chunks: Iterable[Samples]) -> Iterator[Samples]:
        """The same chunks, each once its shards are here and verified; those of the next are looked after meanwhile.

        Raises:
            DamageError: a shard of the chunk that is next cannot be had.
        """
        waiting: deque[tuple[Samples, list[Future[None]]]] = deque()
        pool = ThreadPoolExecutor(DOWNLOADS)
        try:
            for chunk in chunks:
                waiting.append((chunk, [pool.submit(self._bring_ahead, each) for each in self._shards(chunk)]))
                if len(waiting) == 2:
                    yield _awaited(*waiting.popleft())
            yield from (_awaited(*each) for each in waiting)
        finally:
            self._closing.set()
            pool.shutdown(cancel_futures=True)

    def leave(self) -> None:
        """Nobody waits for shards any more: whoever asks a remote again gives up."""
        self._closing.set()

    def close(self) -> None:
        """Leave no shared memory behind; called by every rank when it has read its last sample."""
        self.leave()
        if self._leads_node:
            shared_memory.remove(self._prefix)

    def _bring_ahead(self, shard: int) -> None:
        """`_bring`, unless the shard is here, or another process of the node is at it: then reading it will tell."""
        if self._marks[shard] == _UNKNOWN:
            self._marks[shard] = _CLAIMED
        elif self._marks[shard] == _CLAIMED or bears(self._dataset.shards[shard], int(self._marks[shard])):
            return
        self._bring(shard)

    def _bring(self, shard: int) -> None:
        """Have a shard here, as its index describes it."""
        for _ in range(ARRIVALS if self._is_remote else 1):
            try:
                if self._is_remote:
                    self._fetch(shard)
                self._marks[shard] = examine(self._dataset.shards[shard])
                return
            except Unsound as error:
                damage = error
            if self._is_remote:
                log.warning("%s %s; it is fetched again", self._name(shard), damage)
                self._discard(shard)
        raise DamageError(f"{self._name(shard)} {damage}; {self._stream(shard).remedy}") from damage

    def _fetch(self, shard: int) -> None:
        """Have a shard in the cache; a full disk limits the cache as `cache_limit` does."""
        while True:
            try:
                return self._dataset.prepare_shard(shard)
            except BaseException as error:
                self._dataset._shard_states[shard] = ShardState.REMOTE  # else others wait for it for ever
                if not is_full(error):
                    raise
                full = error
            try:
                self._dataset.evict_coldest_shard()
            except ValueError:  # there is none
                needed = format_bytes(self._dataset.shards[shard].get_max_size())
                raise DamageError(
                    f"{self._name(shard)} cannot be cached: the disk is full ({full.strerror}) and holds no other "
                    f"shard that could go; free {needed} there, then start again"
                ) from full
            log.warning("%s: the disk is full; the shard that was not read for longest made room", self._name(shard))

    def _discard(self, shard: int) -> None:
        """Remove a damaged shard from the cache, unless another process has done so."""
        with dataset_module.FileLock(self._dataset._cache_filelock_path):
            if self._dataset._shard_states[shard] == ShardState.LOCAL:
                try:
                    examine(self._dataset.shards[shard])
                except Unsound:
                    self._dataset._evict_shard(shard)

    def _name(self, shard: int) -> str:
        return f"corpora.{self._stream(shard).corpus}: shard {shard_path(self._dataset.shards[shard])}"

    def _stream(self, shard: int) -> CorpusStream:
        return self._dataset.streams[self._dataset.stream_per_shard[shard]]

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
