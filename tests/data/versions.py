"""Versions of corpora that are written by hand, in as small shards as a test wants."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinyllama.config.schema import TokenizerConfig
from tinyllama.data.disk import point
from tinyllama.data.manifest import Manifest, PartManifest, SplitManifest, corpus_folder, fingerprint, write_manifest
from tinyllama.data.mds import MDSWriter
from tinyllama.data.shards import read_shards
from tinyllama.data.versions import version_name


def write_version(
    data: Path, tokenizer: str, corpus: str, splits: Mapping[str, NDArray[np.integer]], shard_bytes: int = 1 << 10
) -> Path:
    """A version as `prepare` lays it out, the latest of its corpus; `splits` are samples [n, seq_len + 1]."""
    seq_len = splits["train"].shape[1] - 1
    latest = corpus_folder(data, TokenizerConfig(name=tokenizer, path="", vocab_size=0), seq_len, corpus)
    made = latest.with_name("made")
    for split, samples in splits.items():
        columns = {"tokens": "ndarray:uint16"}
        with MDSWriter(out=str(made / split), columns=columns, size_limit=shard_bytes, hashes=["sha256"]) as writer:
            for sample in samples:
                writer.write({"tokens": sample.astype(np.uint16)})
    (made / "documents").mkdir()
    (made / "documents" / "train-0000.parquet").write_bytes(f"documents of {len(splits['train'])}".encode())
    shards = {split: read_shards(made / split) for split in splits}
    sizes = {split: tuple(shard.samples for shard in found) for split, found in shards.items()}
    how = {"tokenizer_digest": "t" * 64, "add_eos": True, "add_bos": False, "seq_len": seq_len}
    left_over = dict.fromkeys(sizes, 0)
    manifest = Manifest(
        corpus=corpus, fingerprint=fingerprint(shards, **how), **how, inputs="", documents=2, skipped={}, noted={},
        bad_rows=(), source_sets={}, characters=9, tokens=9, left_over_tokens=0,
        bytes=sum(shard.bytes for found in shards.values() for shard in found),
        **{split: SplitManifest(1, sum(found), seq_len * sum(found), found) for split, found in sizes.items()},
        parts=(PartManifest("part", 1, {split: len(found) for split, found in sizes.items()}, left_over),),
        sources=(),
    )  # fmt: skip
    write_manifest(made, manifest)
    folder = made.rename(latest.with_name(version_name(corpus, manifest.fingerprint)))
    point(latest, folder)
    return folder
