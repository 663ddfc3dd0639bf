"""Which raw files a corpus has, on this machine or anywhere that fsspec reaches, what a listing tells of them, and
their content at hand as a local file."""

import glob
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import file_digest
from pathlib import Path
from stat import S_ISDIR
from tempfile import TemporaryDirectory
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.utils import glob_translate

from tinyllama.config.schema import CorpusConfig
from tinyllama.data.disk import is_full
from tinyllama.data.manifest import Source
from tinyllama.errors import ConfigError

# What drivers call the time of the last change, and what else they tell of an object's content.
TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")
TAGS = ("ETag", "etag", "md5Hash", "blob_id", "Last-Modified")
# Hugging Face's driver lists the whole folder to tell of one file, unless it is asked for more than the folder tells.
ONE_FILE = {"hf": {"expand_info": True}}
QUESTIONS = 32
"""How many a server is asked at the same time."""
WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0)
"""Before each further attempt at a download."""
# What `datasets` writes into the folder of a data set and into that of its splits.
STATE, SPLITS = "state.json", "dataset_dict.json"


@dataclass(frozen=True)
class RawFile:
    """A raw file as a listing shows it: with all of it but `glob` unchanged, its content is taken to be unchanged.

    `path` may be an address such as s3://BUCKET/NAME. `modified_ns` is 0 where nothing is told of it; `tag` is what
    else a server tells of the content. `glob` is the one of corpora.NAME.files that found the file.
    """

    path: str
    bytes: int
    modified_ns: int
    tag: str = ""
    glob: str = field(default="", compare=False)

    @classmethod
    def listed(cls, path: str | Path) -> "RawFile":
        """The file as it is now.

        Raises:
            OSError: it is not there, or may not be read; drivers also raise errors of their own.
        """
        if _is_address(str(path)):
            return _told(str(path), _ask(*_driver(str(path))))
        status = Path(path).stat()
        return cls(str(path), status.st_size, status.st_mtime_ns)

    @classmethod
    def read(cls, source: Source) -> "RawFile":
        """The file as it was when it was read."""
        return cls(source.path, source.bytes, source.modified_ns, source.tag)

    def source(self, sha256: str) -> Source:
        """The file with the digest of its content."""
        return Source(self.path, self.bytes, self.modified_ns, sha256, self.tag)


@dataclass(frozen=True)
class Fetched:
    """A local file with the content of a raw one, and its digest."""

    path: Path
    sha256: str


def find_files(corpus: CorpusConfig) -> list[RawFile]:
    """The raw files of a corpus, in the order of its globs and by name within each; none twice.

    A glob that matches folders alone names data sets that Hugging Face's `datasets` saved: each stands for its files,
    in their own order.

    Raises:
        ConfigError: a glob matches nothing, or its place cannot be listed.
    """
    found: dict[str, RawFile] = {}
    for pattern in corpus.files:
        setting = f"corpora.{corpus.name}.files={pattern}"
        for file in _found(pattern.removeprefix("file://"), setting):
            found.setdefault(file.path, replace(file, glob=pattern))
    return list(found.values())


@contextmanager
def fetched(file: RawFile, scratch: Path) -> Iterator[Fetched]:
    """The content of a raw file: where it is, or downloaded below `scratch` for as long as the context lasts.

    Raises:
        ConfigError: the file cannot be fetched, or is no longer what was listed.
    """
    if _is_address(file.path):
        scratch.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=scratch) as folder:
            path = Path(folder) / "content"
            _download(file, path)
            yield Fetched(path, _digest(path))
        return
    _see_unchanged(file)
    try:
        here = Fetched(Path(file.path), _digest(Path(file.path)))
    except OSError as error:
        raise ConfigError(f"{file.path} cannot be read ({error}); see to its permissions or its disk") from error
    yield here
    _see_unchanged(file)


# ---------------------------------------------------------------- listing


def _found(pattern: str, setting: str) -> list[RawFile]:
    try:
        driver, name = _driver(pattern)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{setting} wants a driver that is not installed: {error}; or name files on this machine"
        ) from error
    try:
        files, folders = _listed_by_driver(driver, name) if _is_address(pattern) else _listed_here(pattern)
        if folders and not files:
            files = [file for folder in folders for file in _data_set(folder, setting)]
    except ConfigError:
        raise
    except Exception as error:  # each driver has its own
        raise ConfigError(f"{setting} cannot be listed ({_words(error)}); {_remedy(error)}") from error
    if files:
        return files
    if folders:
        raise ConfigError(f"{setting} matches only folders; name what is in them, such as FOLDER/*.jsonl.zst")
    if _is_address(pattern):
        raise ConfigError(f"{setting} matches no file; see that the address is right")
    raise ConfigError(
        f"{setting} matches no file; put the corpus there, or build the demo's: python -m tinyllama.sample +scale=demo"
    )


def _listed_here(pattern: str) -> tuple[list[RawFile], list[str]]:
    """Files and folders on this machine that match a glob."""
    files, folders = [], []
    for path in sorted(glob.glob(os.path.expanduser(pattern), recursive=True)):
        status = os.stat(path)
        if S_ISDIR(status.st_mode):
            folders.append(path)
        else:
            files.append(RawFile(path, status.st_size, status.st_mtime_ns))
    return files, folders


def _listed_by_driver(driver: AbstractFileSystem, name: str) -> tuple[list[RawFile], list[str]]:
    """Files and folders elsewhere that match a glob: what the listing itself tells of them, where it tells sizes."""
    found = {driver.unstrip_protocol(name): told for name, told in sorted(_matching(driver, name).items())}
    files = {address: told for address, told in found.items() if told["type"] != "directory"}
    unmeasured = [address for address, told in files.items() if told.get("size") is None]
    measured = dict(zip(unmeasured, _listed_one_by_one(unmeasured), strict=True))
    return (
        [measured.get(address) or _told(address, told) for address, told in files.items()],
        [address for address in found if address not in files],
    )


def _matching(driver: AbstractFileSystem, pattern: str) -> dict[str, dict[str, Any]]:
    """What a driver tells of all that matches a glob, by name.

    The drivers' own glob and walk will not do: they take a folder that they fail to list for an empty one.
    """
    wildcard = re.search(r"[*[]" if pattern.startswith("http") else r"[*?[]", pattern)
    root = pattern[: wildcard.start()].rpartition("/")[0] if wildcard else pattern
    try:
        told = _ask(driver, root)
    except FileNotFoundError:
        return {}
    if not wildcard:
        return {pattern: told}
    levels = pattern.split("/")

    def leads_on(folder: str) -> bool:
        depth = folder.count("/") + 1
        return "**" in levels or (depth < len(levels) and _matches_glob(folder, "/".join(levels[:depth])))

    return {told["name"]: told for told in _below(driver, root, leads_on) if _matches_glob(told["name"], pattern)}


def _below(driver: AbstractFileSystem, folder: str, leads_on: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
    """What a driver tells of all that is in a folder, and in those below it that lead on."""
    for told in driver.ls(folder, detail=True):
        yield told
        name = told["name"].rstrip("/")
        if told["type"] == "directory" and name != folder and leads_on(name):
            yield from _below(driver, name, leads_on)


def _matches_glob(name: str, pattern: str) -> bool:
    return re.match(glob_translate(pattern), name.rstrip("/")) is not None


def _ask(driver: AbstractFileSystem, name: str) -> dict[str, Any]:
    """What a driver tells of one file or folder."""
    try:
        return driver.info(name, **ONE_FILE.get(driver.unstrip_protocol(name).split(":")[0], {}))
    except FileNotFoundError as error:
        # The web's driver says so of every failure.
        if name.startswith("http") and error.__cause__ and getattr(error.__cause__, "status", None) != 404:
            raise error.__cause__ from None
        raise


def _listed_one_by_one(paths: Sequence[str]) -> list[RawFile]:
    with ThreadPoolExecutor(QUESTIONS) as pool:
        return list(pool.map(RawFile.listed, paths))


def _data_set(folder: str, setting: str) -> list[RawFile]:
    """The files of a data set that `datasets` saved into a folder; none if the folder is something else."""
    driver, name = _driver(folder)
    folder, name = folder.rstrip("/"), name.rstrip("/")
    if driver.exists(f"{name}/{SPLITS}"):
        splits = json.loads(driver.cat_file(f"{name}/{SPLITS}"))["splits"]
        choice = " or ".join(f"{folder}/{split}" for split in splits)
        raise ConfigError(f"{setting} is a data set with splits; name those that are to be read: {choice}")
    if not driver.exists(f"{name}/{STATE}"):
        return []
    state = json.loads(driver.cat_file(f"{name}/{STATE}"))
    return _listed_one_by_one([f"{folder}/{file['filename']}" for file in state["_data_files"]])


def _told(address: str, told: Mapping[str, Any]) -> RawFile:
    """A file as its driver tells of it. Times in whole seconds: a listing may tell fractions that nothing else does."""
    changed = next((told[name] for name in TIMES if told.get(name)), 0)
    seconds = changed.timestamp() if isinstance(changed, datetime) else changed if isinstance(changed, float) else 0
    tags = [str(told[name]) for name in TAGS if told.get(name)]
    return RawFile(address, told.get("size") or 0, int(seconds) * 10**9, " ".join(tags))


# ---------------------------------------------------------------- fetching


def _download(file: RawFile, path: Path) -> None:
    driver, name = _driver(file.path)
    for wait in (*WAITS_SECONDS, None):
        try:
            driver.get_file(name, str(path))
            _see_unchanged(file)
            if path.stat().st_size == file.bytes or file.bytes == 0:  # not every server tells a size
                return
            raise OSError(f"only {path.stat().st_size} of {file.bytes} bytes arrived")
        except ConfigError:
            raise
        except Exception as error:  # each driver has its own
            if is_full(error):
                raise
            if wait is None or _is_final(error):
                raise ConfigError(f"{file.path} cannot be fetched ({_words(error)}); {_remedy(error)}") from error
        time.sleep(wait)


def _see_unchanged(file: RawFile) -> None:
    try:
        unchanged = RawFile.listed(file.path) == file
    except FileNotFoundError:
        unchanged = False
    if not unchanged:
        raise ConfigError(
            f"{file.path} changed since it was listed; once it is whole, the same command goes on with what is missing"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as content:
        return file_digest(content, "sha256").hexdigest()


# ---------------------------------------------------------------- addresses and their drivers


def _is_address(path: str) -> bool:
    return "://" in path


def _driver(address: str) -> tuple[AbstractFileSystem, str]:
    """The driver of an address and the driver's name for it; what it listed before, it does not remember."""
    return url_to_fs(address, use_listings_cache=False)


def _is_final(error: Exception) -> bool:
    """Whether asking again is of no use."""
    return isinstance(error, FileNotFoundError) or _is_refusal(error)


def _is_refusal(error: Exception) -> bool:
    status = getattr(error, "status", getattr(getattr(error, "response", None), "status_code", None))
    return isinstance(error, PermissionError) or "Credentials" in type(error).__name__ or status in (401, 403)


def _remedy(error: Exception) -> str:
    if _is_refusal(error):
        return "give this machine credentials that may read it, where its driver looks for them (AWS_ACCESS_KEY_ID ...)"
    return "see that the address is right and that this machine reaches it; the same command goes on"


def _words(error: Exception) -> str:
    return ": ".join(filter(None, [type(error).__name__, " ".join(str(error).split())]))
