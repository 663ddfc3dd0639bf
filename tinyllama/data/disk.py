"""What has to be on the disk before a name says that it is there; and the word for a disk that is full."""

import errno
import os
from pathlib import Path
from typing import TypeGuard


def sync(path: Path) -> None:
    """Force a file's content, or a folder's names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Force all files and names below a folder to the disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def is_full(error: BaseException) -> TypeGuard[OSError]:
    """Whether there was no room left, on the disk or in the quota."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
