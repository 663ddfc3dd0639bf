"""Files that are there whole or not at all, and small ones that tell when they were changed."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tinyllama.data.disk import sync
from tinyllama.errors import DamageError
from tinyllama.planning.identity import digest, flatten
from tinyllama.units import format_bytes

SEAL = "seal"
"""The last field of a sealed file, a digest of all others."""

READERS = 8
"""Files read at a time: hashing one keeps a core busy, and does not hold up the others."""


def write_durably(path: Path, text: str) -> None:
    """Write a small file so that it is there whole or not at all, whatever happens."""
    aside = path.with_name(f".{path.name}.writing")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    sync(path.parent)


def write_sealed(path: Path, fields: Mapping[str, Any]) -> None:
    """Write a JSON object, and with it the digest of its fields."""
    write_durably(path, _sealed(fields, _seal(fields)))


def read_sealed(path: Path) -> dict[str, Any]:
    """The fields of an object as they were written.

    Raises:
        DamageError: the file is missing, cannot be read, or was changed.
    """
    try:
        content = path.read_bytes()
        fields = json.loads(content)
        seal = fields.pop(SEAL)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamageError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    if _seal(fields) != seal or _sealed(fields, seal).encode() != content:
        raise DamageError(f"{path} is damaged: its content is not what its seal vouches for")
    return dict(fields)


def _sealed(fields: Mapping[str, Any], seal: str) -> str:
    return json.dumps({**fields, SEAL: seal}, indent=1) + "\n"


def _seal(fields: Mapping[str, Any]) -> str:
    """Their digest, and where there are nulls, which digests pass over, also that of their names."""
    nulls = [name for name, value in flatten(fields).items() if value is None]
    return digest([fields, nulls] if nulls else fields)


def describe(path: Path) -> dict[str, Any]:
    """Size and content of a file; read in pieces."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def describe_all(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Of each file; several are read at a time."""
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(describe, paths))


def forget(path: Path) -> None:
    """Have the next reader of a file read the disk, not what the system remembers of it, where it can be told so."""
    if hasattr(os, "posix_fadvise"):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def why_not_written(error: Exception, folder: Path) -> str:
    """What keeps a file from being written into a folder, and what a person can do about it."""
    if not isinstance(error, OSError):
        return f"{type(error).__name__}: {error}"
    what = f"{error.strerror or error} in {folder}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{what}, where {format_bytes(free_bytes(folder))} are free; remove what that disk need not hold"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{what}; allow user {os.getuid()} to write there"
    return what


def free_bytes(path: Path) -> int:
    """On the disk where a file or folder stands, or will stand."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
