"""What has to be on the disk before a name says that it is there; and the word for a disk that is full."""

import errno
import os
import shutil
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
    """Force all files and names below a folder to the disk; a file of several names was there before."""
    for path in folder.rglob("*"):
        if path.is_dir() or path.stat().st_nlink == 1:
            sync(path)
    sync(folder)


def link(source: Path, target: Path) -> None:
    """Another name for a file; a copy where the file system has no such names."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.ENOSYS):
            raise
        shutil.copyfile(source, target)


def point(name: Path, target: Path) -> None:
    """Make `name` a symbolic link to its neighbour `target`, at once where it is one to another."""
    aside = name.with_name(f".{name.name}-link")
    aside.unlink(missing_ok=True)
    aside.symlink_to(target.name)
    aside.replace(name)
    sync(name.parent)


def is_full(error: BaseException) -> TypeGuard[OSError]:
    """Whether there was no room left, on the disk or in the quota."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
