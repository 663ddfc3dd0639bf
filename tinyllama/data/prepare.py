"""Raw text -> tokenised, packed MDS shards with a held-out split and a manifest.

The files of a corpus are cut into parts (parts.py), which are joined here; what the parts leave over is packed last.
"""

import fcntl
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from hashlib import file_digest
from itertools import chain
from pathlib import Path

import numpy as np

from tinyllama.config.schema import CorpusConfig, TokenizerConfig
from tinyllama.data.disk import is_full, sync, sync_tree
from tinyllama.data.manifest import (
    MANIFEST,
    TRAIN,
    VALIDATION,
    Manifest,
    Shard,
    Source,
    SplitManifest,
    corpus_folder,
    fingerprint,
    read_manifest,
    write_manifest,
)
from tinyllama.data.packing import Packer, token_dtype
from tinyllama.data.parts import SPLITS, Recipe, cores, make_parts, read_tally
from tinyllama.data.readers import find_files
from tinyllama.data.reporter import Reporter, silent
from tinyllama.data.shards import ShardWriter, merge_shards
from tinyllama.data.tokenizer import Tokenizer
from tinyllama.errors import ConfigError, DamageError
from tinyllama.planning.identity import digest
from tinyllama.units import format_bytes

# Small corpora get small shards, so that there are enough of them to shuffle among.
MIN_SHARD_BYTES, MAX_SHARD_BYTES = 1 << 16, 1 << 23
SHARDS_WANTED = 32
# Of a digest in a folder's name.
DIGEST_LENGTH = 12


def prepare_corpus(
    corpus: CorpusConfig,
    tokenizer: TokenizerConfig,
    seq_len: int,
    data: str | Path,
    progress: Reporter = silent,
    processes: int | None = None,
) -> Manifest:
    """Prepare a corpus below `data`, or find that it is prepared already from the same inputs.

    Raises:
        ConfigError: no raw files, damaged ones, too little text for a sample of each split, or an unusable tokenizer.
        DamageError: the disk is full, or the manifest of what was prepared before is damaged.
    """
    paths = find_files(corpus)
    model = Tokenizer.load(tokenizer)
    folder = corpus_folder(data, tokenizer, seq_len, corpus.name)
    with _room_below(data, corpus), _alone(folder):
        previous = read_manifest(folder)
        sources = _read_sources(paths, previous, partial(progress, f"{corpus.name}: reading the raw files"))
        shard_bytes = sum(source.bytes for source in sources) // SHARDS_WANTED
        recipe = Recipe(corpus, tokenizer, seq_len, min(max(shard_bytes, MIN_SHARD_BYTES), MAX_SHARD_BYTES))
        inputs = _inputs(recipe, sources, model)
        aside = folder.with_name(f".{corpus.name}-{inputs[:DIGEST_LENGTH]}")
        if previous is not None and previous.inputs == inputs:
            shutil.rmtree(aside, ignore_errors=True)  # clearing it away was interrupted
            progress(f"{corpus.name}: already prepared", 1, 1)
            return previous
        whole = aside / "whole"
        manifest = _finished(whole)
        if manifest is None:
            if whole.exists():  # joining, which moves shards out of their parts, was interrupted
                shutil.rmtree(aside)
            parts = make_parts(recipe, sources, aside, partial(progress, f"{corpus.name}: tokenising"), processes)
            manifest = _join_parts(recipe, sources, parts, whole, inputs, model)
        _put_in_place(whole, folder)
    return manifest


# ---------------------------------------------------------------- what goes in


def _read_sources(
    paths: Sequence[Path], previous: Manifest | None, progress: Callable[[int, int], None]
) -> list[Source]:
    known = {(source.path, source.bytes, source.modified_ns): source for source in previous.sources} if previous else {}

    def read(path: Path) -> Source:
        status = path.stat()
        seen = known.get((str(path), status.st_size, status.st_mtime_ns))
        if seen is not None:
            return seen
        with path.open("rb") as file:
            return Source(str(path), status.st_size, status.st_mtime_ns, file_digest(file, "sha256").hexdigest())

    sources = []
    with ThreadPoolExecutor(cores()) as pool:
        for source in pool.map(read, paths):
            sources.append(source)
            progress(len(sources), len(paths))
    return sources


def _inputs(recipe: Recipe, sources: Iterable[Source], model: Tokenizer) -> str:
    corpus, tokenizer = recipe.corpus, recipe.tokenizer
    return digest(
        {
            "sources": [source.sha256 for source in sources],
            "text_field": corpus.text_field,
            "keep": {name: list(values) for name, values in corpus.keep.items()},
            "drop": {name: list(values) for name, values in corpus.drop.items()},
            "validation_fraction": corpus.validation_fraction,
            "tokenizer": model.digest,
            "add_eos": tokenizer.add_eos,
            "add_bos": tokenizer.add_bos,
            "seq_len": recipe.seq_len,
            "shard_bytes": recipe.shard_bytes,
        }
    )


# ---------------------------------------------------------------- the whole


def _join_parts(
    recipe: Recipe, sources: Sequence[Source], parts: Sequence[Path], whole: Path, inputs: str, model: Tokenizer
) -> Manifest:
    tallies = [read_tally(part) for part in parts]
    left_over = {}
    shards: dict[str, tuple[Shard, ...]] = {}
    whole.mkdir()
    for split in SPLITS:
        last = whole.with_name(f"left-over-{split}")
        left_over[split] = _pack_left_over([tally.left_over[split] for tally in tallies], recipe, last)
        shards[split] = merge_shards([*(part / split for part in parts), last], whole / split)
    documents = sum((tally.documents for tally in tallies), Counter[str]())
    splits = {
        split: SplitManifest(
            documents=documents[split],
            samples=sum(shard.samples for shard in shards[split]),
            tokens=sum(shard.samples for shard in shards[split]) * recipe.seq_len,
            shard_samples=tuple(shard.samples for shard in shards[split]),
        )
        for split in SPLITS
    }
    manifest = Manifest(
        corpus=recipe.corpus.name,
        fingerprint=fingerprint(shards, model.digest, recipe.tokenizer, recipe.seq_len),
        inputs=inputs,
        tokenizer_digest=model.digest,
        seq_len=recipe.seq_len,
        documents=documents.total(),
        skipped=dict(sorted(sum((tally.skipped for tally in tallies), Counter[str]()).items())),
        characters=sum(tally.characters for tally in tallies),
        tokens=sum(tally.tokens for tally in tallies),
        left_over_tokens=sum(left_over.values()),
        bytes=sum(shard.bytes for shard in chain.from_iterable(shards.values())),
        train=splits[TRAIN],
        validation=splits[VALIDATION],
        sources=tuple(sources),
    )
    _require_samples(recipe, manifest)
    sync_tree(whole)
    write_manifest(whole, manifest)
    sync(whole / MANIFEST)
    sync(whole)
    return manifest


def _finished(whole: Path) -> Manifest | None:
    """The manifest of a corpus that only has to be put in place, if it came that far."""
    try:
        return read_manifest(whole)
    except DamageError:  # writing it was interrupted
        return None


def _pack_left_over(runs: Iterable[list[int]], recipe: Recipe, folder: Path) -> int:
    """Pack what each part left over into shards of its own; returns how many tokens are in no sample even so."""
    dtype = token_dtype(recipe.tokenizer.vocab_size)
    packer = Packer(recipe.seq_len, dtype)
    with ShardWriter(folder, dtype, recipe.shard_bytes) as writer:
        for run in runs:
            writer.write(packer.add(np.array(run, dtype)))
    return len(packer.left_over)


def _require_samples(recipe: Recipe, manifest: Manifest) -> None:
    name, sample = recipe.corpus.name, recipe.seq_len + 1
    if not manifest.train.samples:
        skipped = ", ".join(f"{count} rows: {reason}" for reason, count in manifest.skipped.items()) or "none skipped"
        raise ConfigError(
            f"corpora.{name}.files hold {manifest.train.documents} documents to train on and {manifest.tokens} tokens "
            f"in all ({skipped}), fewer than one sample of {sample}; add text, check keep and drop, "
            "or lower model.seq_len"
        )
    if recipe.corpus.validation_fraction > 0 and not manifest.validation.samples:
        raise ConfigError(
            f"corpora.{name}.validation_fraction={recipe.corpus.validation_fraction} holds out "
            f"{manifest.validation.documents} of {manifest.documents} documents, fewer than one sample of {sample} "
            "tokens; raise it, or set it to 0 to do without validation"
        )


def _put_in_place(whole: Path, folder: Path) -> None:
    """Swap the new corpus in and clear away what this and earlier, abandoned preparations left."""
    old = whole.with_name("old")
    if folder.exists():
        folder.rename(old)
    whole.rename(folder)
    sync(folder.parent)
    for leftover in folder.parent.glob(f".{folder.name}-" + DIGEST_LENGTH * "[0-9a-f]"):
        shutil.rmtree(leftover)


@contextmanager
def _room_below(data: str | Path, corpus: CorpusConfig) -> Iterator[None]:
    """Says so when the room runs out."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        free = format_bytes(shutil.disk_usage(data).free)
        raise DamageError(
            f"paths.data={data} has no room left for corpora.{corpus.name} ({error.strerror}, {free} free); free space "
            "there, or choose another disk: the same command goes on with the parts that are missing"
        ) from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One preparation of a corpus at a time; a second waits for the first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
