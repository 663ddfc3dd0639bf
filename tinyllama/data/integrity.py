"""Whether a shard on this machine is the one that its index describes.

Its content is compared once, before its first sample is read. From then on every read looks at the file's mark: inode,
size and time of change, which no write and no replacement leaves as it was.
"""

import hashlib
import os
import struct
from typing import Any

from numpy.typing import NDArray

from tinyllama.data.mds import FileInfo, Reader
from tinyllama.data.shards import COLUMN


class Unsound(Exception):
    """What is wrong with a shard, in words that go on after its path."""


def shard_path(shard: Reader) -> str:
    return os.path.join(shard.dirname, shard.split, _description(shard).basename)


def examine(shard: Reader) -> int:
    """The mark of a shard that is as its index says; reads it whole.

    Raises:
        Unsound: it is missing, cannot be read, or is not as the index says.
    """
    wanted = _description(shard)
    sha256 = wanted.hashes.get("sha256")
    if sha256 is None:
        raise Unsound("cannot be verified, its index has no sha256 of it")
    try:
        with open(shard_path(shard), "rb") as file:
            status = os.fstat(file.fileno())  # before reading: a later change will show
            if status.st_size != wanted.bytes:
                raise Unsound(f"holds {status.st_size} bytes, but its index says {wanted.bytes}")
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise Unsound("is missing") from error
    except OSError as error:
        raise Unsound(f"cannot be read ({error.strerror})") from error
    if found != sha256:
        raise Unsound(f"is damaged: its sha256 is {found[:12]}..., but its index says {sha256[:12]}...")
    return _mark(status)


def bears(shard: Reader, mark: int) -> bool:
    """Whether the file is the one that got this mark, unchanged."""
    try:
        return _mark(os.stat(shard_path(shard))) == mark
    except OSError:
        return False


def read_sample(shard: Reader, place: int, mark: int) -> NDArray[Any] | None:
    """A sample of a shard, None if the file is not the one that got this mark, or not as it was then."""
    try:
        file = os.open(shard_path(shard), os.O_RDONLY)
        try:
            begin, end = struct.unpack("<II", os.pread(file, 8, 4 * (1 + place)))
            data = os.pread(file, end - begin, begin)
            status = os.fstat(file)  # after reading: what was read is what was marked
        finally:
            os.close(file)
    except (OSError, struct.error):
        return None
    return shard.decode_sample(data)[COLUMN] if _mark(status) == mark else None


def _description(shard: Reader) -> FileInfo:
    """What the index says of the file, unpacked."""
    description: FileInfo = shard.file_pairs[0][0]
    return description


def _mark(status: os.stat_result) -> int:
    """An int64; of the same file the same in every process."""
    return hash((status.st_ino, status.st_size, status.st_ctime_ns))
