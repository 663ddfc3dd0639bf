"""Micro-batches of token ids in the exact order of the plan, for training and for validation."""

import os
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tinyllama import signals
from tinyllama.data.integrity import Unsound, examine, read_sample, shard_path
from tinyllama.data.mds import LocalDataset
from tinyllama.data.remote import PATIENCE_SECONDS
from tinyllama.data.shards import INDEX
from tinyllama.data.streaming import ShardStore
from tinyllama.errors import ConfigError, DamageError, TinyllamaError
from tinyllama.planning.order import SampleOrder, Samples
from tinyllama.planning.views import View
from tinyllama.world import World

_Rows = tuple[NDArray[Any], Samples]
"""A micro-batch as read: tokens [micro_batch, seq_len + 1] of uint16 or uint32, and what they are."""

_CHUNK_SAMPLES = 512
"""Positions that a reader looks up at a time, and how far ahead it fetches."""


NO_SAMPLE = -1
"""sample_id of a row that stands for no sample."""


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Samples of one forward pass of one rank; all int64."""

    tokens: Tensor
    """[micro_batch, seq_len + 1]"""
    corpus: Tensor
    """[micro_batch], index into the order's names"""
    draw: Tensor
    """[micro_batch], counted from the root of the lineage"""
    sample_id: Tensor
    """[micro_batch], within the corpus"""


def train_loader(
    order: SampleOrder,
    folders: Mapping[str, Path],
    *,
    micro_batch: int,
    world: World,
    start: int,
    stop: int,
    run_id: str,
    workers: int = 0,
    remotes: Mapping[str, str] | None = None,
    cache_limit: int | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
    ahead: int = 2,
) -> Generator[MicroBatch, None, None]:
    """This rank's micro-batches of positions [start, stop) of a stage; all ranks must call it at the same point.

    Args:
        folders: the training shards of each corpus (a cache, if the corpus has a remote).
        start, stop: in samples of the stage; micro-step u of all ranks together is the contiguous range of
            world.size * micro_batch positions that begins at start + u * world.size * micro_batch.
        run_id: distinguishes runs that share a node.
        workers: processes that read; 0 reads in a thread of this one.
        remotes: where the corpora are fetched from, all of them; their folders are caches then.
        cache_limit: bytes of them on each node, in all.
        patience_seconds: how long a remote that fails is asked again.
        ahead: micro-batches that are read before they are asked for.

    Raises:
        DamageError: the shards on disk are not those that the order was planned for; or, when it is due, a shard that
            is missing or damaged.
    """
    pass_samples = world.size * micro_batch
    assert (stop - start) % pass_samples == 0, f"[{start}, {stop}) is no whole number of passes of {pass_samples}"
    store = ShardStore(
        {name: folders[name] for name in order.names},
        world=world,
        run_id=run_id,
        remotes=remotes,
        cache_limit=cache_limit,
        patience_seconds=patience_seconds,
    )
    for name, sizes in store.shard_samples.items():
        if not np.array_equal(sizes, order.shard_samples[name]):
            store.close()
            raise DamageError(
                f"{folders[name]} holds {sizes.sum()} samples in {sizes.size} shards, but the plan was made for "
                f"{order.shard_samples[name].sum()} in {order.shard_samples[name].size}; prepare {name} again"
            )
    reader = _Reader(order, store, world=world, micro_batch=micro_batch, start=start, stop=stop)
    return _in_workers(reader, store, workers, ahead) if workers else _in_thread(reader, store, ahead)


def validation_loader(
    folder: Path, *, samples: int, micro_batch: int, world: World, seq_len: int
) -> Iterator[MicroBatch]:
    """This rank's share of the first `samples` held-out samples of one corpus (all, if there are fewer; none at worst).

    Those of another prepared length are cut or joined as training's are. The samples are divided as evenly as can be,
    and all ranks make equally many passes, as ZeRO-3 needs them to: a rank for which nothing is left gets a row of
    sample_id NO_SAMPLE, which must not be counted. `corpus` is 0.

    Raises:
        ConfigError: samples of the prepared length can neither be cut into such of seq_len nor joined.
        DamageError: a shard is missing or damaged.
    """
    if not (folder / INDEX).exists():  # no document was held out
        return
    split = _HeldOut(folder)
    packed = len(split.tokens(0)) - 1
    if packed % seq_len and seq_len % packed:
        raise ConfigError(
            f"model.seq_len={seq_len}, but {folder} was prepared with {packed}, which it neither divides nor is a "
            f"multiple of; prepare it again"
        )
    view, sizes = View.of(packed, seq_len), split.shard_samples
    count = min(samples, view.samples(sizes))
    if not count:  # no shard holds as many as are joined
        return
    passes = -(-count // (world.size * micro_batch))
    for ids in np.array_split(np.arange(count), passes * world.size)[world.rank :: world.size]:
        real = ids if ids.size else np.array([NO_SAMPLE])
        read = np.maximum(0, real)
        rows = list(map(view.tokens, read.tolist(), view.first(read, sizes).tolist(), repeat(split.tokens)))
        yield _micro_batch((np.stack(rows), Samples(np.zeros_like(real), real, real)))


def rank_positions(begins: NDArray[np.int64], *, world: World, micro_batch: int, lanes: int = 1) -> NDArray[np.int64]:
    """This rank's positions in the micro-steps that begin at `begins`: [steps, micro_batch].

    The positions of a step go to the ranks in equal slices, lane by lane, so that a node reads few lanes.
    """
    positions = begins[:, None] + np.arange(world.size * micro_batch)
    by_lane = np.argsort(positions % lanes, axis=1, kind="stable")
    mine = by_lane[:, world.rank * micro_batch : (world.rank + 1) * micro_batch]
    return np.take_along_axis(positions, mine, axis=1)


class _HeldOut:
    """The samples of a folder of shards, each shard verified before its first sample is read."""

    def __init__(self, folder: Path):
        self._folder = folder
        try:
            self._split = LocalDataset(str(folder))
        except Exception as error:
            raise DamageError(f"{folder / INDEX} cannot be used ({error}); {self._remedy}") from error
        self._marks: dict[int, int] = {}

    @property
    def shard_samples(self) -> NDArray[np.int64]:
        return np.array([shard.samples for shard in self._split.shards], np.int64)

    def tokens(self, sample_id: int) -> NDArray[Any]:
        number, place = self._split.spanner[sample_id]
        shard = self._split.shards[number]
        try:
            if number not in self._marks:
                self._marks[number] = examine(shard)
            tokens = read_sample(shard, place, self._marks[number])
            if tokens is None:
                raise Unsound("was replaced while it was read")
        except Unsound as error:
            raise DamageError(f"{shard_path(shard)} {error}; {self._remedy}") from error
        return tokens

    @property
    def _remedy(self) -> str:
        return "restore it from a copy, or delete it and prepare the corpus again"


class _Reader(IterableDataset[_Rows | TinyllamaError]):
    """Reads in the rank itself, or in its workers; they take micro-steps in turn, as DataLoader asks them in turn.

    An error for people is the last that it gives: raised in a worker, it would come with the worker's stack trace.
    """

    def __init__(self, order: SampleOrder, store: ShardStore, *, world: World, micro_batch: int, start: int, stop: int):
        self._order, self._store, self._world, self._micro_batch = order, store, world, micro_batch
        self._begins = range(start, stop, world.size * micro_batch)

    def __iter__(self) -> Generator[_Rows | TinyllamaError, None, None]:
        try:
            yield from self._rows()
        except TinyllamaError as error:
            yield error

    def _rows(self) -> Iterator[_Rows]:
        worker = get_worker_info()
        begins = self._begins[worker.id :: worker.num_workers] if worker else self._begins
        ahead: deque[Samples] = deque()
        for prepared in self._store.arrived(self._prepared(self._chunks(begins), ahead)):
            chunk = ahead.popleft()
            for corpus, draw, sample_id, first in zip(
                chunk.corpus, chunk.draw, chunk.sample_id, prepared.sample_id, strict=True
            ):
                rows = list(map(self._tokens, corpus.tolist(), sample_id.tolist(), first.tolist()))
                yield np.stack(rows), Samples(corpus, draw, sample_id)

    def _prepared(self, chunks: Iterator[Samples], ahead: deque[Samples]) -> Iterator[Samples]:
        """The prepared samples in which those of the chunks begin; the chunks themselves go to `ahead`."""
        for chunk in chunks:
            ahead.append(chunk)
            yield replace(chunk, sample_id=self._order.prepared(chunk))

    def _tokens(self, corpus: int, sample_id: int, first: int) -> NDArray[Any]:
        return self._order.view.tokens(sample_id, first, partial(self._store.tokens, corpus))

    def _chunks(self, begins: range) -> Iterator[Samples]:
        """The samples of some steps at a time, [steps, micro_batch]."""
        steps = -(-_CHUNK_SAMPLES // self._micro_batch)
        for first in range(0, len(begins), steps):
            some = np.asarray(begins[first : first + steps], np.int64)
            yield self._order.samples(
                rank_positions(some, world=self._world, micro_batch=self._micro_batch, lanes=self._order.lanes)
            )


def _in_thread(reader: _Reader, store: ShardStore, ahead: int) -> Generator[MicroBatch, None, None]:
    """What is read next to the training, at most `ahead` micro-batches before they are asked for."""
    found = iter(reader)
    pinned = torch.cuda.is_available()
    # A thread's device is the first of all, unless told.
    device: Any = {"initializer": torch.cuda.set_device, "initargs": (torch.cuda.current_device(),)} if pinned else {}
    pool = ThreadPoolExecutor(1, **device)
    waiting = deque(pool.submit(_next, found, pinned) for _ in range(ahead))
    try:
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(_next, found, pinned))
            yield batch
    finally:
        store.leave()
        pool.shutdown(cancel_futures=True)
        found.close()
        store.close()


def _in_workers(reader: _Reader, store: ShardStore, workers: int, ahead: int) -> Generator[MicroBatch, None, None]:
    loader: DataLoader[_Rows | TinyllamaError] = DataLoader(
        reader,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=max(1, -(-ahead // workers)),
        collate_fn=_unchanged,
        worker_init_fn=_serve,
        multiprocessing_context="fork",
        generator=torch.Generator(),  # else it would take a number from the generator of the run
    )
    try:
        for found in loader:
            yield _micro_batch(found)
    finally:
        store.close()


def _next(found: Iterator[_Rows | TinyllamaError], pinned: bool) -> MicroBatch | None:
    """None at the end. Pinned memory reaches a GPU while it computes."""
    rows = next(found, None)
    return None if rows is None else _micro_batch(rows, pinned)


def _serve(worker: int) -> None:
    """In a worker: to stop is for its rank to decide, but not to outlive it, holding the run's lock."""
    signals.ignore()
    signals.die_with(os.getppid())


def _unchanged(rows: Any) -> Any:
    """Arrays as read come through a pipe faster than tensors, each of which is a file of shared memory."""
    return rows


def _micro_batch(found: _Rows | TinyllamaError, pinned: bool = False) -> MicroBatch:
    if isinstance(found, TinyllamaError):
        raise found
    rows, samples = found
    tokens = torch.from_numpy(rows.astype(np.int64))
    return MicroBatch(
        tokens=tokens.pin_memory() if pinned else tokens,
        corpus=torch.from_numpy(samples.corpus),
        draw=torch.from_numpy(samples.draw),
        sample_id=torch.from_numpy(samples.sample_id),
    )
