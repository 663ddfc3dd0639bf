"""Packed samples -> MDS shards, and folders of shards -> one folder with one index."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllama.data.manifest import Shard

COLUMN = "tokens"
INDEX = "index.json"


class ShardWriter:
    """Writes samples into a new folder; its `shards` are known once the context is left."""

    def __init__(self, folder: Path, dtype: np.dtype, shard_bytes: int) -> None:
        # Brings torch with it, which finding a corpus prepared does without.
        from tinyllama.data.mds import MDSWriter

        self.folder = folder
        self._writer = MDSWriter(
            out=str(folder), columns={COLUMN: f"ndarray:{dtype.name}"}, hashes=["sha256"], size_limit=shard_bytes
        )

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if error is None:
            self._writer.finish()
        else:  # writing what is left would only fail again, or pass for a whole
            self._writer.cancel_future_jobs()

    def write(self, samples: NDArray[np.integer]) -> None:
        """Append samples [n, seq_len + 1]."""
        for sample in samples:
            self._writer.write({COLUMN: sample})

    @property
    def shards(self) -> tuple[Shard, ...]:
        return read_shards(self.folder)


def read_shards(folder: Path) -> tuple[Shard, ...]:
    """The shards of a split in order, as its index names them."""
    return tuple(
        Shard(entry["raw_data"]["basename"], entry["samples"], entry["raw_data"]["bytes"], _sha256(entry))
        for entry in _index(folder)
    )


def merge_shards(folders: Sequence[Path], target: Path) -> tuple[Shard, ...]:
    """Move the shards of all folders, in order, into one new folder under one index."""
    target.mkdir()
    entries: list[dict[str, Any]] = []
    shards: list[Shard] = []
    for folder in folders:
        for entry, shard in zip(_index(folder), read_shards(folder), strict=True):
            name = f"shard.{len(entries):06d}.mds"
            (folder / shard.name).rename(target / name)
            entries.append(entry | {"raw_data": entry["raw_data"] | {"basename": name}})
            shards.append(replace(shard, name=name))
    (target / INDEX).write_text(json.dumps({"version": 2, "shards": entries}, sort_keys=True), encoding="utf-8")
    return tuple(shards)


def _index(folder: Path) -> list[dict[str, Any]]:
    path = folder / INDEX
    # A split without a single sample has no index.
    return json.loads(path.read_text(encoding="utf-8"))["shards"] if path.exists() else []


def _sha256(entry: dict[str, Any]) -> str:
    return str(entry["raw_data"]["hashes"]["sha256"])
