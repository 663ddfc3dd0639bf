"""Whether a prepared corpus is what its manifest says: everything is read again, by all cores."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinyllama.config.schema import CorpusConfig
from tinyllama.data.documents import document_ends
from tinyllama.data.listing import RawFile, find_files
from tinyllama.data.manifest import Manifest
from tinyllama.data.shards import read_shards, require_fingerprint
from tinyllama.data.soundness import (
    DOCUMENTS,
    OVERLAP,
    SHARDS,
    SPECIAL,
    VOCABULARY,
    Faults,
    Found,
    Kind,
    Vocabulary,
    examine_strand,
)
from tinyllama.data.strands import SplitLayout, Strand
from tinyllama.data.tokenizer import Tokenizer
from tinyllama.errors import ConfigError, DamageError
from tinyllama.proof.examination import Check, Examination
from tinyllama.units import format_bytes

INDEX, TOKENIZER, RAW_FILES = "index", "tokenizer", "raw files"
"""What is looked at besides what the shards hold."""

Borders = dict[Kind, NDArray[np.int64]]
"""Where in a stream BOS and EOS are to be."""


def examine_corpus(
    folder: Path, manifest: Manifest, corpus: CorpusConfig, tokenizer: Tokenizer, tell: Callable[[int, int], None]
) -> list[Check]:
    """Look at every token of a version.

    Args:
        folder: the version's own.
        tell: called with how many of the streams have been read, and of how many.
    """
    examination = Examination()
    examination.check(INDEX, lambda: _compare_index(folder, manifest))
    examination.check(TOKENIZER, lambda: _compare_tokenizer(manifest, tokenizer))
    if all(check.ok for check in examination.checks):
        examination.checks += _read_shards_whole(folder, manifest, Vocabulary(tokenizer), tell)
    examination.check(RAW_FILES, lambda: _compare_raw_files(manifest, corpus))
    return examination.checks


def _compare_index(folder: Path, manifest: Manifest) -> str:
    """The shards that the indices name are those of the manifest, and they are the fingerprint."""
    require_fingerprint(folder)
    shards = {split: read_shards(folder / split) for split in manifest.splits}
    for split, wanted in manifest.splits.items():
        samples = tuple(shard.samples for shard in shards[split])
        if samples != wanted.shard_samples:
            raise DamageError(
                f"{split}/index.json has {len(samples)} shards of {sum(samples)} samples, the manifest "
                f"{len(wanted.shard_samples)} of {sum(wanted.shard_samples)}, or in another order"
            )
    listed = sum(shard.bytes for split in shards.values() for shard in split)
    if listed != manifest.bytes:
        raise DamageError(f"the indices have shards of {listed} bytes in all, the manifest says {manifest.bytes}")
    if problem := _miscounted(manifest):
        raise DamageError(f"the manifest contradicts itself: {problem}")
    number = sum(map(len, shards.values()))
    return f"{number:,} shards, {format_bytes(listed)}, fingerprint {manifest.fingerprint[:12]}, as the manifest says"


def _miscounted(manifest: Manifest) -> str | None:
    """Numbers of a manifest that do not add up."""
    layouts = {split: SplitLayout(manifest, split) for split in manifest.splits}
    sets = manifest.source_sets.values()
    sums = {
        "documents": (manifest.documents, sum(split.documents for split in manifest.splits.values())),
        "documents of the source sets": (manifest.documents, sum(each["documents"] for each in sets)),
        "tokens of the source sets": (manifest.tokens, sum(each["tokens"] for each in sets)),
        "tokens of the parts": (manifest.tokens, sum(layout.tokens for layout in layouts.values())),
        "tokens left over": (manifest.left_over_tokens, sum(layout.in_no_sample for layout in layouts.values())),
    }
    for name, split in manifest.splits.items():
        samples = layouts[name].samples
        sums |= {f"samples of {name}": (split.samples, samples)}
        sums |= {f"tokens of {name}": (split.tokens, samples * manifest.seq_len)}
    wrong = (f"{told} {name}, which add up to {found}" for name, (told, found) in sums.items() if told != found)
    return next(wrong, None)


def _compare_tokenizer(manifest: Manifest, tokenizer: Tokenizer) -> str:
    if tokenizer.digest != manifest.tokenizer_digest:
        raise DamageError(
            f"the corpus was prepared with model {manifest.tokenizer_digest[:12]}, tokenizer.path="
            f"{tokenizer.config.path} is {tokenizer.digest[:12]}; name the one that it was prepared with"
        )
    return f"model {tokenizer.digest[:12]}, with which the corpus was prepared"


def _compare_raw_files(manifest: Manifest, corpus: CorpusConfig) -> str:
    """Tells how the raw files stand; they may change or go once a corpus is prepared."""
    try:
        now = {file.path: file for file in find_files(corpus)}
    except ConfigError as error:
        return f"not there any more: {error}"
    before = {source.path: RawFile.read(source) for source in manifest.sources}
    common = before.keys() & now.keys()
    same = sum(before[path] == now[path] for path in common)
    counts = {
        "changed": len(common) - same,
        "gone": len(before.keys() - now.keys()),
        "added": len(now.keys() - before.keys()),
    }
    others = "".join(f", {count} {what}" for what, count in counts.items() if count)
    return f"{same} of {len(before)} as they were when they were read (names, sizes, times){others}"


# ---------------------------------------------------------------- what the shards hold


def _read_shards_whole(
    folder: Path, manifest: Manifest, vocabulary: Vocabulary, tell: Callable[[int, int], None]
) -> list[Check]:
    found, documents = Found(), 0
    total = len(manifest.splits) * (len(manifest.parts) + 1)
    steps = count(1)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        try:
            for split in manifest.splits:
                for each in _read_split(folder, manifest, split, vocabulary, pool):
                    found.include(each.found)
                    documents += each.documents
                    tell(next(steps), total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if documents != manifest.documents:
        words = f"the lists of documents have {documents} of them, the manifest {manifest.documents}"
        found.faults.add(DOCUMENTS, [words])
    borders = [kind.name.upper() for kind, used in _borders_of(manifest).items() if used] or ["nothing"]
    details = {
        SHARDS: f"{format_bytes(found.bytes)}, of the sizes and sha256 that the indices name",
        VOCABULARY: f"{found.tokens:,} tokens in samples, all of the vocabulary",
        DOCUMENTS: f"{documents:,} documents, with {' and '.join(borders)} at the borders of each and nowhere else; "
        f"{manifest.left_over_tokens:,} tokens are in no sample",
        SPECIAL: f"no other; {found.kinds[Kind.unknown]:,} unknown",
        OVERLAP: "each sample begins with the last token of the one before it",
    }
    return [_check(name, detail, found.faults) for name, detail in details.items()]


def _check(name: str, detail: str, faults: Faults) -> Check:
    if not faults.counts[name]:
        return Check(name, True, detail)
    more = faults.counts[name] - len(faults.words[name])
    return Check(name, False, "; ".join(faults.words[name]) + (f"; and {more:,} more" if more else ""))


@dataclass(frozen=True)
class _Strand:
    """What was found in a strand."""

    found: Found
    documents: int
    left_over: Borders | None
    """Of what its part leaves over, counted from there; None if that is not known."""


def _read_split(
    folder: Path, manifest: Manifest, split: str, vocabulary: Vocabulary, pool: ThreadPoolExecutor
) -> Iterator[_Strand]:
    """The strand of each part, and the tail."""
    layout, shards = SplitLayout(manifest, split), read_shards(folder / split)

    def examine(strand: Strand, borders: Borders) -> Found:
        return examine_strand(folder / split, shards, strand, borders, vocabulary, manifest.seq_len)

    def read_part(part: int) -> _Strand:
        length, left_over = layout.length(part), layout.left_over[part]
        try:
            ends = document_ends(folder, split, part)
            told = int(ends[-1]) if len(ends) else 0
            if told != length:
                raise DamageError(f"the documents of part {part} have {told} tokens, its part of {split} {length}")
        except DamageError as error:
            found = examine(layout.parts[part], {})
            found.faults.add(DOCUMENTS, [str(error)])
            return _Strand(found, 0, None)
        borders, begin = _borders(manifest, ends), length - left_over
        rest = {kind: at[at >= begin] - begin for kind, at in borders.items()}
        return _Strand(examine(layout.parts[part], borders), len(ends), rest)

    tail: list[Borders] = []
    for part, each in enumerate(pool.map(read_part, range(len(layout.parts)))):
        if each.left_over is not None:
            passed = sum(layout.left_over[:part])
            tail.append({kind: at + passed for kind, at in each.left_over.items()})
        yield each
    known = _borders_of(manifest) if len(tail) == len(layout.parts) else {}
    borders = {kind: np.concatenate([each[kind] for each in tail]) for kind in known}
    yield _Strand(examine(layout.tail, borders), 0, None)


def _borders_of(manifest: Manifest) -> dict[Kind, bool]:
    """Which tokens stand at the borders of documents."""
    return {Kind.bos: manifest.add_bos, Kind.eos: manifest.add_eos}


def _borders(manifest: Manifest, ends: NDArray[np.int64]) -> Borders:
    """Where they stand."""
    places = {Kind.bos: np.append(0, ends)[: len(ends)], Kind.eos: ends - 1}
    return {kind: places[kind] if used else np.empty(0, np.int64) for kind, used in _borders_of(manifest).items()}
