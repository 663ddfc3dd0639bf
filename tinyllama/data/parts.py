"""Groups of raw files -> parts of a prepared corpus, in parallel.

A part is a folder with the shards of both splits and a result; an interrupted preparation goes on with the missing
ones. What a part holds depends on its files and the recipe alone, never on the number of processes.
"""

import json
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from tinyllama.config.schema import CorpusConfig, TokenizerConfig
from tinyllama.data.disk import sync, sync_tree
from tinyllama.data.manifest import TRAIN, VALIDATION, Source
from tinyllama.data.packing import Packer, token_dtype
from tinyllama.data.readers import Document, read_documents
from tinyllama.data.shards import ShardWriter
from tinyllama.data.tokenizer import Tokenizer
from tinyllama.errors import TinyllamaError

SPLITS = (TRAIN, VALIDATION)
BATCH_CHARACTERS = 1 << 20
MAX_PARTS = 1024
MIN_PART_BYTES = 1 << 18
# Starting a process takes as long as tokenising about this much.
PROCESS_BYTES = 1 << 24
RESULT = "part.json"


@dataclass(frozen=True)
class Recipe:
    """All that decides how raw text becomes samples."""

    corpus: CorpusConfig
    tokenizer: TokenizerConfig
    seq_len: int
    shard_bytes: int


@dataclass
class Tally:
    """What a part of a corpus came to; `left_over` holds the ids that fill no sample, by split."""

    documents: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    characters: int = 0
    tokens: int = 0
    left_over: dict[str, list[int]] = field(default_factory=dict)


def make_parts(
    recipe: Recipe,
    sources: Sequence[Source],
    folder: Path,
    progress: Callable[[int, int], None],
    processes: int | None = None,
) -> list[Path]:
    """Make the parts of a corpus that `folder` lacks; returns the folders of all, in order."""
    jobs = [(recipe, paths, folder / f"part-{number:04d}") for number, paths in enumerate(_cut(sources))]
    missing = [job for job in jobs if not (job[2] / RESULT).exists()]
    done = len(jobs) - len(missing)
    progress(done, len(jobs))
    worthwhile = 1 + sum(source.bytes for source in sources) // PROCESS_BYTES
    for _ in _in_parallel(missing, processes or min(cores(), worthwhile)):
        done += 1
        progress(done, len(jobs))
    return [part for _, _, part in jobs]


def read_tally(part: Path) -> Tally:
    """What a finished part came to."""
    fields: dict[str, Any] = json.loads((part / RESULT).read_text(encoding="utf-8"))
    return Tally(**fields | {name: Counter(fields[name]) for name in ("documents", "skipped")})


def held_out(text: str, fraction: float) -> bool:
    """Whether a document belongs to the validation split: by its text alone, so that copies stay together."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) < fraction * 2**64


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def _cut(sources: Sequence[Source]) -> Iterator[list[Path]]:
    """Neighbouring files in groups of similar size, at most MAX_PARTS of them."""
    enough = max(MIN_PART_BYTES, sum(source.bytes for source in sources) / MAX_PARTS)
    group: list[Source] = []
    for source in sources:
        group.append(source)
        if sum(member.bytes for member in group) >= enough:
            yield [Path(member.path) for member in group]
            group = []
    if group:
        yield [Path(member.path) for member in group]


def _in_parallel(jobs: Sequence[tuple[Recipe, list[Path], Path]], processes: int) -> Iterator[Path]:
    if min(processes, len(jobs)) <= 1:
        yield from (_make_part(*job) for job in jobs)
        return
    # A fork server imports once, and unlike a plain fork inherits no thread of ours in mid-lock.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "tinyllama.data.mds"])
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context) as pool:
        try:
            yield from pool.map(_make_part, *zip(*jobs, strict=True))
        except BrokenProcessPool as error:
            raise TinyllamaError(
                f"a process that prepared corpora.{jobs[0][0].corpus.name} was killed, perhaps for want of memory; the "
                "same command goes on with the parts that are missing"
            ) from error


def _make_part(recipe: Recipe, paths: list[Path], folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tally = Tally()
    model = Tokenizer.load(recipe.tokenizer)
    dtype = token_dtype(recipe.tokenizer.vocab_size)
    packers = {split: Packer(recipe.seq_len, dtype) for split in SPLITS}
    with (
        ShardWriter(folder / TRAIN, dtype, recipe.shard_bytes) as train,
        ShardWriter(folder / VALIDATION, dtype, recipe.shard_bytes) as validation,
    ):
        writers = {TRAIN: train, VALIDATION: validation}
        documents = chain.from_iterable(read_documents(path, recipe.corpus, tally.skipped) for path in paths)
        for split, texts in _batches(documents, recipe.corpus.validation_fraction):
            encoded = model.encode_documents(texts)
            writers[split].write(packers[split].add(np.concatenate([np.array(ids, dtype) for ids in encoded])))
            tally.documents[split] += len(texts)
            tally.characters += sum(map(len, texts))
            tally.tokens += sum(map(len, encoded))
    tally.left_over = {split: packers[split].left_over.tolist() for split in SPLITS}
    # Written last: a part that has it is whole, on the disk too.
    sync_tree(folder)
    result = folder / f".{RESULT}"
    result.write_text(json.dumps(vars(tally)), encoding="utf-8")
    sync(result)
    result.rename(folder / RESULT)
    return folder


def _batches(documents: Iterable[Document], validation_fraction: float) -> Iterator[tuple[str, list[str]]]:
    """Documents of one split at a time, about BATCH_CHARACTERS together; within a split their order is kept."""
    waiting: dict[str, list[str]] = {split: [] for split in SPLITS}
    characters = dict.fromkeys(SPLITS, 0)
    for document in documents:
        split = VALIDATION if held_out(document.text, validation_fraction) else TRAIN
        waiting[split].append(document.text)
        characters[split] += len(document.text)
        if characters[split] >= BATCH_CHARACTERS:
            yield split, waiting[split]
            waiting[split], characters[split] = [], 0
    yield from ((split, texts) for split, texts in waiting.items() if texts)
