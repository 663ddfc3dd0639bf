"""Files that are there whole or not at all, and small ones that tell when they were changed."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyllama.errors import DamageError
from tinyllama.planning.identity import digest, flatten

SEAL = "seal"
"""The last field of a sealed file, a digest of all others."""


def write_durably(path: Path, text: str) -> None:
    """Write a small file so that it is there whole or not at all, whatever happens."""
    aside = path.with_name(f".{path.name}.writing")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Force the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_sealed(path: Path, fields: Mapping[str, Any]) -> None:
    """Write a JSON object, and with it the digest of its fields."""
    write_durably(path, json.dumps({**fields, SEAL: _seal(fields)}, indent=1) + "\n")


def read_sealed(path: Path) -> dict[str, Any]:
    """The fields of an object as they were written.

    Raises:
        DamageError: the file is missing, cannot be read, or was changed.
    """
    try:
        fields = json.loads(path.read_bytes())
        seal = fields.pop(SEAL)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamageError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    if _seal(fields) != seal:
        raise DamageError(f"{path} is damaged: its content is not what its seal vouches for")
    return dict(fields)


def _seal(fields: Mapping[str, Any]) -> str:
    """Their digest, and where there are nulls, which digests pass over, also that of their names."""
    nulls = [name for name, value in flatten(fields).items() if value is None]
    return digest([fields, nulls] if nulls else fields)


def describe(path: Path) -> dict[str, Any]:
    """Size and content of a file; read in pieces."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
