"""Parts of a corpus -> a version of it, with one index for each split and the manifest."""

import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from tinyllama.data.disk import link, sync_tree
from tinyllama.data.manifest import (
    TRAIN,
    VALIDATION,
    Manifest,
    PartManifest,
    Shard,
    SplitManifest,
    documents_path,
    fingerprint,
    write_manifest,
)
from tinyllama.data.pack import SPLITS, Tally
from tinyllama.data.packing import Packer, token_dtype
from tinyllama.data.recipe import Part, Recipe
from tinyllama.data.shards import ShardWriter, merge_shards
from tinyllama.errors import ConfigError

BAD_ROWS = 100
"""How many a manifest names."""


def join_parts(recipe: Recipe, parts: Sequence[Part], tallies: Sequence[Tally], version: Path) -> Manifest:
    """Link the files of all parts into a new folder, add what the parts left over, and write the manifest last.

    The version shares its bytes with the parts, and so with all versions that are made of some of them.

    Raises:
        ConfigError: too little text for a sample of each split.
    """
    version.mkdir()
    left_over = {}
    shards: dict[str, tuple[Shard, ...]] = {}
    for split in SPLITS:
        last = version / f"left-over-{split}"
        left_over[split] = _pack_left_over([tally.left_over[split] for tally in tallies], recipe, last)
        shards[split] = merge_shards([*(part.folder / split for part in parts), last], version / split)
        shutil.rmtree(last)
    manifest = _manifest(recipe, parts, tallies, shards, left_over)
    _require_samples(recipe, manifest)
    _link_documents(parts, version)
    write_manifest(version, manifest)
    sync_tree(version)
    return manifest


def _manifest(
    recipe: Recipe,
    parts: Sequence[Part],
    tallies: Sequence[Tally],
    shards: dict[str, tuple[Shard, ...]],
    left_over: dict[str, int],
) -> Manifest:
    documents = _sum(tally.documents for tally in tallies)
    splits = {
        split: SplitManifest(
            documents=documents[split],
            samples=sum(shard.samples for shard in shards[split]),
            tokens=sum(shard.samples for shard in shards[split]) * recipe.seq_len,
            shard_samples=tuple(shard.samples for shard in shards[split]),
        )
        for split in SPLITS
    }
    return Manifest(
        corpus=recipe.corpus.name,
        fingerprint=fingerprint(
            shards,
            tokenizer_digest=recipe.tokenizer_digest,
            add_eos=recipe.tokenizer.add_eos,
            add_bos=recipe.tokenizer.add_bos,
            seq_len=recipe.seq_len,
        ),
        inputs=recipe.inputs(tally.sources for tally in tallies),
        tokenizer_digest=recipe.tokenizer_digest,
        add_eos=recipe.tokenizer.add_eos,
        add_bos=recipe.tokenizer.add_bos,
        seq_len=recipe.seq_len,
        documents=documents.total(),
        skipped=_sorted(_sum(tally.skipped for tally in tallies)),
        noted=_sorted(_sum(tally.noted for tally in tallies)),
        bad_rows=tuple(chain.from_iterable(tally.bad_rows for tally in tallies))[:BAD_ROWS],
        source_sets={
            name: _sorted(_sum(Counter(tally.source_sets.get(name, {})) for tally in tallies))
            for name in sorted({name for tally in tallies for name in tally.source_sets})
        },
        characters=sum(tally.characters for tally in tallies),
        tokens=sum(tally.tokens for tally in tallies),
        left_over_tokens=sum(left_over.values()),
        bytes=sum(shard.bytes for shard in chain.from_iterable(shards.values())),
        train=splits[TRAIN],
        validation=splits[VALIDATION],
        parts=tuple(
            PartManifest(
                folder=part.folder.name,
                files=len(part.files),
                shards=tally.shards,
                left_over={split: len(tally.left_over[split]) for split in SPLITS},
            )
            for part, tally in zip(parts, tallies, strict=True)
        ),
        sources=tuple(chain.from_iterable(tally.sources for tally in tallies)),
    )


def _pack_left_over(runs: Iterable[list[int]], recipe: Recipe, folder: Path) -> int:
    """Pack what each part left over into shards of its own; returns how many tokens are in no sample even so."""
    dtype = token_dtype(recipe.tokenizer.vocab_size)
    packer = Packer(recipe.seq_len, dtype)
    with ShardWriter(folder, dtype, recipe.seq_len, recipe.shard_samples) as writer:
        for run in runs:
            writer.write(packer.add(np.array(run, dtype)))
    return len(packer.left_over)


def _link_documents(parts: Sequence[Part], version: Path) -> None:
    (version / documents_path(TRAIN, 0)).parent.mkdir()
    for split in SPLITS:
        for number, part in enumerate(parts):
            link(part.folder / f"documents-{split}.parquet", version / documents_path(split, number))


def _sum(counters: Iterable[Counter[str]]) -> Counter[str]:
    return sum(counters, Counter[str]())


def _sorted(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items()))


def _require_samples(recipe: Recipe, manifest: Manifest) -> None:
    name, sample = recipe.corpus.name, recipe.seq_len + 1
    if not manifest.train.samples:
        skipped = ", ".join(f"{count} rows: {reason}" for reason, count in manifest.skipped.items()) or "none skipped"
        raise ConfigError(
            f"corpora.{name}.files hold {_counted(manifest.train.documents, 'document')} to train on and "
            f"{manifest.tokens} tokens in all ({skipped}), fewer than one sample of {sample}; add text, check keep and "
            f"drop{', lower validation_fraction' * bool(manifest.validation.documents)}, or lower packing.seq_len"
        )
    if recipe.corpus.validation_fraction > 0 and not manifest.validation.samples:
        raise ConfigError(
            f"corpora.{name}.validation_fraction={recipe.corpus.validation_fraction} holds out "
            f"{manifest.validation.documents} of {_counted(manifest.documents, 'document')}, fewer than one sample of "
            f"{sample} tokens; raise it, or set it to 0 to do without validation"
        )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
