"""A prepared corpus -> paths.remote, whence runs fetch it (remote_corpora.py shows how it lies there)."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import zstandard

from tinyllama.data.manifest import MANIFEST, TRAIN, VALIDATION
from tinyllama.data.remote_files import Listing, RemoteFiles
from tinyllama.data.reporter import Reporter, silent
from tinyllama.data.shards import INDEX
from tinyllama.errors import ConfigError, DamageError

_AT_A_TIME = 8
"""Files that are read, packed and sent."""


def upload_corpus(folder: Path, remote: str, compression: str | None, progress: Reporter = silent) -> None:
    """Bring a version of a prepared corpus to a remote, and make it the latest there.

    Shards are packed as `compression` says; their index describes both forms, and the fingerprint is that of what they
    hold. What is there as it should be is not sent again. The manifest goes last, and without it there is no version:
    an upload that is cut short leaves nothing that could be read, and the next one goes on from there.

    Args:
        folder: .../shards/TOKENIZER-LENGTH/CORPUS@FINGERPRINT
        compression: "zstd" or "zstd:LEVEL"; None: none.

    Raises:
        ConfigError: the remote cannot be used, or the compression is not known.
        DamageError: a shard is not as its index says.
    """
    compressor = _compressor(compression)
    files = RemoteFiles(remote)
    parent = f"{folder.parent.parent.name}/{folder.parent.name}"
    manifest = (folder / MANIFEST).read_bytes()
    there = files.listing(f"{parent}/{folder.name}")
    if not there.holds(MANIFEST, manifest):
        upload = _Upload(folder, files, f"{parent}/{folder.name}", there, compressor)
        upload.run(partial(progress, f"upload of {folder.name} to {remote}"))
        files.write(f"{parent}/{folder.name}/{MANIFEST}", manifest)
    files.write(f"{parent}/{folder.name.partition('@')[0]}/{MANIFEST}", manifest)


class _Upload:
    """Of all but the manifest."""

    def __init__(self, folder: Path, files: RemoteFiles, target: str, there: Listing, compressor: "_Compressor | None"):
        self._folder, self._files, self._target, self._there = folder, files, target, there
        self._compressor = compressor

    def run(self, progress: Callable[[int, int], None]) -> None:
        indices = {split: self._index(split) for split in (TRAIN, VALIDATION)}
        shards = [(split, entry) for split, index in indices.items() for entry in index.get("shards", ())]
        others = [path for path in sorted((self._folder / "documents").glob("*")) if path.is_file()]
        total = len(shards) + len(others)
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            sent = pool.map(self._send_shard, *zip(*shards, strict=True)) if shards else iter(())
            packed: dict[str, list[Mapping[str, Any]]] = {split: [] for split in indices}
            for done, ((split, _), entry) in enumerate(zip(shards, sent, strict=True), start=1):
                packed[split].append(entry)
                progress(done, total)
            for done, _ in enumerate(pool.map(self._send_file, others), start=len(shards) + 1):
                progress(done, total)
        for split, index in indices.items():
            if index:
                self._send(f"{split}/{INDEX}", json.dumps({**index, "shards": packed[split]}, sort_keys=True).encode())

    def _index(self, split: str) -> dict[str, Any]:
        """{} for a split without a sample."""
        path = self._folder / split / INDEX
        return json.loads(path.read_bytes()) if path.exists() else {}

    def _send_shard(self, split: str, entry: Mapping[str, Any]) -> Mapping[str, Any]:
        """Its entry in the index there."""
        raw = entry["raw_data"]
        path = self._folder / split / raw["basename"]
        content = _read(path)
        if hashlib.sha256(content).hexdigest() != raw["hashes"]["sha256"]:
            raise DamageError(
                f"{path} is damaged: its sha256 is not that of its index; restore it from a copy, or delete "
                f"{self._folder} and prepare the corpus again"
            )
        if self._compressor is None:
            self._send(f"{split}/{raw['basename']}", content)
            return entry
        content = self._compressor.pack(content)
        name = f"{raw['basename']}.zstd"
        self._send(f"{split}/{name}", content)
        zipped = {
            "basename": name, "bytes": len(content), "hashes": {"sha256": hashlib.sha256(content).hexdigest()}
        }  # fmt: skip
        return {**entry, "compression": self._compressor.name, "zip_data": zipped}

    def _send_file(self, path: Path) -> None:
        self._send(path.relative_to(self._folder).as_posix(), _read(path))

    def _send(self, name: str, content: bytes) -> None:
        if not self._there.holds(name, content):
            self._files.write(f"{self._target}/{name}", content)


class _Compressor:
    """zstd at a level, the same bytes every time; `name` is what the index calls it."""

    def __init__(self, name: str, level: int):
        self.name, self._level = name, level

    def pack(self, content: bytes) -> bytes:
        return zstandard.ZstdCompressor(level=self._level).compress(content)


def _compressor(compression: str | None) -> _Compressor | None:
    if compression is None:
        return None
    found = re.fullmatch(r"zstd(?::([1-9]|1\d|2[0-2]))?", compression)
    if found is None:
        raise ConfigError(
            f"preparation.compression={compression} is not known; use zstd:LEVEL with a level from 1 (quick) to 22 "
            "(small), or null for none"
        )
    return _Compressor(compression, int(found[1] or 3))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DamageError(
            f"{path} is missing; restore it from a copy, or delete {path.parents[1]} and prepare the corpus again"
        ) from error
