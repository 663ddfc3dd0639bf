"""Small files below an address of any kind that fsspec knows: a folder, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER.

Manifests are read and corpora uploaded through fsspec alone: folders and object stores are one code with it, and a plan
need not load torch, which comes with streaming. Streaming fetches the shards (remote.py). Both find an S3 server by
Amazon's AWS_ENDPOINT_URL or by streaming's own S3_ENDPOINT_URL, and the same credentials.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tinyllama.errors import ConfigError

_S3 = ("s3", "s3a")


class RemoteFiles:
    """The files below paths.remote; names are relative to it.

    Every method raises ConfigError where the remote cannot be used: paths.remote, what it answered, and what to do.
    """

    def __init__(self, address: str):
        import fsspec

        self.address = address.rstrip("/")
        protocol = fsspec.utils.get_protocol(self.address)
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.address, **_options(protocol))
        except (ImportError, ValueError) as error:
            extra = ": pip install 'tinyllama[s3]'" if protocol in _S3 else ""
            raise ConfigError(
                f"paths.remote={address}: {error}; choose a folder or an address such as s3://BUCKET/FOLDER, and "
                f"install the driver that it wants{extra}"
            ) from error

    def read(self, name: str) -> bytes | None:
        """A whole file; None where there is none."""
        with self._told("read"):
            try:
                return bytes(self._files.cat_file(self._path(name)))
            except FileNotFoundError:
                return None

    def folders(self, parent: str) -> list[str]:
        """The names of the folders in a folder; none where it is not there."""
        with self._told("listed"):
            try:
                found = self._files.ls(self._path(parent), detail=True)
            except FileNotFoundError:
                return []
        return sorted(each["name"].rstrip("/").rpartition("/")[2] for each in found if each["type"] == "directory")

    def holds_anything(self) -> bool:
        with self._told("listed"):
            return bool(self._files.exists(self._root))

    def listing(self, folder: str) -> "Listing":
        """What lies below a folder, as of now."""
        with self._told("listed"):
            found = self._files.find(self._path(folder), detail=True)
        begin = len(self._path(folder)) + 1
        return Listing(self, folder, {path[begin:]: about for path, about in found.items()})

    def write(self, name: str, content: bytes) -> None:
        """Put a whole file in place; whoever reads it meanwhile finds the old one or the new one."""
        path = self._path(name)
        with self._told("written to"):
            if "file" in self._files.protocol:  # only there a file grows under its name
                self._files.makedirs(os.path.dirname(path), exist_ok=True)
                self._files.pipe_file(f"{path}.writing", content)
                os.replace(f"{path}.writing", path)
            else:
                self._files.pipe_file(path, content)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _told(self, done: str) -> Iterator[None]:
        what = f"paths.remote={self.address} cannot be {done}"
        try:
            yield
        except FileNotFoundError as error:
            raise ConfigError(
                f"{what}, there is no such place ({_first_line(error)}); create the bucket, or correct the address"
            ) from error
        except Exception as error:  # each kind of remote has its own
            if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
                raise ConfigError(
                    f"{what}, it refuses access ({_first_line(error)}); give the process credentials that may do so "
                    "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile)"
                ) from error
            raise ConfigError(
                f"{what} ({type(error).__name__}: {_first_line(error)}); see that it can be reached from here (on "
                "another server than Amazon's AWS_ENDPOINT_URL tells which), then run the same command again"
            ) from error


class Listing:
    """Files below a folder of a remote."""

    def __init__(self, remote: RemoteFiles, folder: str, files: Mapping[str, Mapping[str, Any]]):
        self._remote, self._folder, self._files = remote, folder, files

    def holds(self, name: str, content: bytes) -> bool:
        """Whether the file is there with just this content."""
        about = self._files.get(name)
        if about is None or about["size"] != len(content):
            return False
        # S3 gives the MD5 of what was sent in one piece.
        tag = str(about.get("ETag", "")).strip('"')
        if tag == hashlib.md5(content, usedforsecurity=False).hexdigest():
            return True
        return not tag and self._remote.read(f"{self._folder}/{name}") == content


def _options(protocol: str) -> dict[str, Any]:
    if protocol not in _S3:
        return {"use_listings_cache": False}
    patience = {"connect_timeout": 5, "read_timeout": 30, "retries": {"mode": "standard", "max_attempts": 3}}
    endpoint = os.environ.get("S3_ENDPOINT_URL")
    return {"use_listings_cache": False, "config_kwargs": patience} | ({"endpoint_url": endpoint} if endpoint else {})


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
