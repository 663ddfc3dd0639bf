"""A corpus that is fetched from elsewhere, shard by shard, with patience."""

import logging
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, local

from tinyllama.data.disk import is_full
from tinyllama.data.integrity import Unsound, examine, shard_path
from tinyllama.data.mds import CloudDownloader, FileInfo, Reader, Stream, StreamingWorld
from tinyllama.data.shards import INDEX
from tinyllama.errors import ConfigError, DamageError, TinyllamaError
from tinyllama.planning.views import View
from tinyllama.units import format_bytes

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 300.0
"""How long a remote that fails is asked again at most; less than the ranks wait for each other."""
ARRIVALS = 3
"""How often a shard that arrives damaged is fetched before its remote is blamed."""


_LONGEST_WAIT_SECONDS = 30.0
_DEFAULTS = {"split": None, "download_retry": 1, "download_timeout": 60, "validate_hash": None, "keep_zip": False}


class CorpusStream(Stream):
    """The shards of one corpus and where they come from.

    Args:
        remote: a folder, or an address of a kind that streaming knows (s3://...); None: the shards are in `folder`.
        patience_seconds: how long a remote that fails is asked again.
        closing: set when nobody waits for shards any more.
    """

    def __init__(self, corpus: str, folder: Path, remote: str | None, patience_seconds: float, closing: Event):
        try:
            super().__init__(remote=remote, local=str(folder))
        except ValueError as error:
            raise ConfigError(f"corpora.{corpus}: {remote} is no remote that shards can be fetched from") from error
        self.apply_default(_DEFAULTS)
        self.corpus = corpus
        self._folder, self._patience_seconds, self._closing = folder, patience_seconds, closing
        self._own = local()

    def get_shards(self, world: StreamingWorld, allow_unsafe_types: bool) -> list[Reader]:
        try:
            return super().get_shards(world, allow_unsafe_types)
        except TinyllamaError:
            raise
        except Exception as error:
            remedy = "delete that file: it is fetched again" if self.remote else f"prepare {self.corpus} again"
            raise DamageError(
                f"corpora.{self.corpus}: {self._folder / INDEX} cannot be used ({error}); {remedy}"
            ) from error
        finally:
            self._hang_up()  # processes that are forked from here must not share a connection

    def _download_file(self, from_basename: str, to_basename: str | None = None) -> str:
        """Fetch a file, asking again while the remote fails; in place of streaming's own few attempts."""
        source, target = f"{self.remote}/{from_basename}", self._folder / (to_basename or from_basename)
        began = time.monotonic()
        for attempt, wait in enumerate(_waits(), start=1):
            try:
                _remove(target)  # what a killed run left would pass for the whole
                self._downloader_of_thread().download(source, str(target), self.download_timeout)
            except Exception as error:  # each kind of remote has its own
                _remove(target)
                self._hang_up()
                if is_full(error):
                    raise
                where = f"corpora.{self.corpus}: {source} cannot be fetched ({type(error).__name__}: {error})"
                if time.monotonic() + wait > began + self._patience_seconds or self._closing.wait(wait):
                    raise DamageError(
                        f"{where}, tried {attempt} times in {time.monotonic() - began:.0f} seconds; see that the "
                        "remote can be reached and has that file, then start again from the last checkpoint"
                    ) from error
                if attempt == 1:
                    log.warning("%s; trying again for %.0f seconds", where, self._patience_seconds)
            else:
                if attempt > 1:
                    log.warning("corpora.%s: %s was fetched at attempt %d", self.corpus, source, attempt)
                return str(target)
        raise AssertionError("waits have no end")

    def _decompress_shard_part(
        self, zip_info: FileInfo, zip_filename: str, raw_filename: str, compression: str | None
    ) -> None:
        try:
            super()._decompress_shard_part(zip_info, zip_filename, raw_filename, compression)
        except Exception as error:
            for path in (zip_filename, raw_filename):
                _remove(Path(path))
            if is_full(error):
                raise
            raise Unsound(f"cannot be unpacked ({error})") from error

    @property
    def remedy(self) -> str:
        """For a shard that is not as its index says."""
        if self.remote:
            return f"that is how it came from {self.remote} {ARRIVALS} times: replace it there"
        return f"restore it from a copy, or delete it and prepare {self.corpus} again"

    def _downloader_of_thread(self) -> CloudDownloader:
        """Hanging up a connection must not cut off another thread's."""
        if not hasattr(self._own, "downloader"):
            self._own.downloader = CloudDownloader.get(self.remote)
        return self._own.downloader

    def _hang_up(self) -> None:
        if hasattr(self._own, "downloader"):
            with suppress(Exception):  # it may be broken
                self._own.downloader.clean_up()
            del self._own.downloader


def fetch_first(corpus: str, folder: Path, remote: str, samples: int, view: View, patience_seconds: float) -> None:
    """Have the index of a split in a folder, and the shards of the first samples of a view, as the index says.

    Raises:
        DamageError: they cannot be had.
    """
    stream = CorpusStream(corpus, folder, remote, patience_seconds, Event())
    folder.mkdir(parents=True, exist_ok=True)
    for shard in stream.get_shards(StreamingWorld(num_nodes=1, ranks_per_node=1, workers_per_rank=1, worker=0), False):
        if samples <= 0:
            break
        _fetch(stream, shard)
        samples -= view.samples([shard.samples])


def _fetch(stream: CorpusStream, shard: Reader) -> None:
    for _ in range(ARRIVALS):
        try:
            stream.prepare_shard(shard)
            examine(shard)
            return
        except Unsound as error:
            damage = error
            _remove(Path(shard_path(shard)))
        except OSError as error:
            if not is_full(error):
                raise
            raise DamageError(
                f"corpora.{stream.corpus}: shard {shard_path(shard)} cannot be cached: the disk is full; free "
                f"{format_bytes(shard.get_max_size())} there, then start again"
            ) from error
    raise DamageError(f"corpora.{stream.corpus}: shard {shard_path(shard)} {damage}; {stream.remedy}") from damage


def _waits() -> Iterator[float]:
    """Seconds before each next attempt: twice as long each time, and never in step with other ranks."""
    wait = 1.0
    while True:
        yield wait * random.uniform(0.75, 1.25)
        wait = min(2 * wait, _LONGEST_WAIT_SECONDS)


def _remove(target: Path) -> None:
    for path in (target, target.with_name(target.name + ".tmp")):
        path.unlink(missing_ok=True)
