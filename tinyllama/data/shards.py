"""Packed samples -> MDS shards, and folders of shards -> one folder with one index."""

import json
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllama.data.disk import link
from tinyllama.data.manifest import MANIFEST, TRAIN, VALIDATION, Shard, fingerprint, read_manifest
from tinyllama.errors import DamageError

COLUMN = "tokens"
INDEX = "index.json"
_REMEDY = f"restore the {INDEX} from a copy, or delete it and prepare the corpus again"


class ShardWriter:
    """Writes samples into a new folder, `shard_samples` to a shard; its `shards` are known once the context is left.

    The files are those that MosaicML streaming's MDSWriter writes of arrays, byte for byte. That one takes them sample
    by sample, for which it needs many times as long, and wants torch.
    """

    def __init__(self, folder: Path, dtype: np.dtype, seq_len: int, shard_samples: int) -> None:
        self.folder = folder
        self.shard_samples = shard_samples
        self._waiting = np.empty((0, seq_len + 1), dtype)
        self._config = {
            "column_encodings": [f"ndarray:{dtype.name}"],
            "column_names": [COLUMN],
            "column_sizes": [None],
            "compression": None,
            "format": "mds",
            "hashes": ["sha256"],
            "size_limit": None,
            "version": 2,
        }
        self._entries: list[dict[str, Any]] = []
        folder.mkdir(parents=True)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if error is not None:  # writing what is left would only fail again, or pass for a whole
            return
        if len(self._waiting):
            self._write_shard(self._waiting)
        index = {"version": 2, "shards": self._entries}
        (self.folder / INDEX).write_text(json.dumps(index, sort_keys=True), encoding="utf-8")

    def write(self, samples: NDArray[np.integer]) -> None:
        """Append samples [n, seq_len + 1]."""
        self._waiting = np.concatenate([self._waiting, samples])
        while len(self._waiting) >= self.shard_samples:
            self._write_shard(self._waiting[: self.shard_samples])
            self._waiting = self._waiting[self.shard_samples :]

    @property
    def shards(self) -> tuple[Shard, ...]:
        return read_shards(self.folder)

    def _write_shard(self, samples: NDArray[np.integer]) -> None:
        """A count, where each sample begins and the last one ends, the config, and the samples."""
        rows = _rows(samples)
        config = json.dumps(self._config, sort_keys=True).encode()
        begin = 4 * (2 + len(rows)) + len(config)
        offsets = (begin + rows.shape[1] * np.arange(len(rows) + 1)).astype("<u4")
        content = b"".join([np.array(len(rows), "<u4").tobytes(), offsets.tobytes(), config, rows.tobytes()])
        name = f"shard.{len(self._entries):05d}.mds"
        (self.folder / name).write_bytes(content)
        raw = {"basename": name, "bytes": len(content), "hashes": {"sha256": sha256(content).hexdigest()}}
        self._entries.append(self._config | {"samples": len(rows), "raw_data": raw, "zip_data": None})


def _rows(samples: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Samples as MDS holds them, a row for each: its size, how many axes of which length, the values."""
    length = samples.shape[1]
    width = 0 if length < 1 << 8 else 1 if length < 1 << 16 else 2
    shape = bytes([1 << 2 | width]) + length.to_bytes(1 << width, "little")
    values = np.ascontiguousarray(samples).view(np.uint8)
    size = len(shape) + values.shape[1]
    head = np.frombuffer(size.to_bytes(4, "little") + shape, np.uint8)
    return np.hstack([np.broadcast_to(head, (len(samples), len(head))), values])


def read_shards(folder: Path) -> tuple[Shard, ...]:
    """The shards of a split in order, as its index names them."""
    return tuple(
        Shard(entry["raw_data"]["basename"], entry["samples"], entry["raw_data"]["bytes"], _sha256(entry))
        for entry in _index(folder)
    )


def require_fingerprint(folder: Path) -> None:
    """Compare the indices of a version with what its manifest says of it; reads no shard.

    Raises:
        DamageError: they are not those that the fingerprint was taken of.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise DamageError(f"{folder} has no {MANIFEST}; prepare the corpus again")
    try:
        shards = {split: read_shards(folder / split) for split in manifest.splits}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamageError(
            f"{folder}: an {INDEX} of corpora.{manifest.corpus} is damaged ({error!r}); {_REMEDY}"
        ) from error
    found = fingerprint(
        shards,
        tokenizer_digest=manifest.tokenizer_digest,
        add_eos=manifest.add_eos,
        add_bos=manifest.add_bos,
        seq_len=manifest.seq_len,
    )
    if found != manifest.fingerprint:
        raise DamageError(
            f"{folder}: the shards that {TRAIN}/{INDEX} and {VALIDATION}/{INDEX} of corpora.{manifest.corpus} describe "
            f"have the fingerprint {found[:12]}, but {MANIFEST} says {manifest.fingerprint[:12]}; {_REMEDY}"
        )


def merge_shards(folders: Sequence[Path], target: Path) -> tuple[Shard, ...]:
    """Link the shards of all folders, in order, into a new folder under one index."""
    target.mkdir()
    entries: list[dict[str, Any]] = []
    shards: list[Shard] = []
    for folder in folders:
        for entry, shard in zip(_index(folder), read_shards(folder), strict=True):
            name = f"shard.{len(entries):06d}.mds"
            link(folder / shard.name, target / name)
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
