"""Raw text -> tokenised, packed MDS shards with a held-out split and a manifest: a version of a corpus.

The raw files of a corpus are cut into parts (recipe.py), which are made in parallel (parts.py), on one machine or on
many, stay in a store (store.py), and are joined to a version (join.py); here stands what is to be done of all this.
"""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from secrets import token_hex

from tinyllama.config.schema import CorpusConfig, PreparationConfig, TokenizerConfig
from tinyllama.data import store
from tinyllama.data.disk import is_full, point, sync
from tinyllama.data.join import join_parts
from tinyllama.data.manifest import MANIFEST, Manifest
from tinyllama.data.pack import Tally
from tinyllama.data.parts import UNFINISHED, make_parts, read_tally
from tinyllama.data.prepared import as_listed, find_prepared
from tinyllama.data.recipe import Work, lay_out
from tinyllama.data.reporter import Reporter, silent
from tinyllama.data.versions import latest_version, standing_versions, version_name
from tinyllama.errors import DamageError
from tinyllama.units import format_bytes


def prepare_corpus(
    corpus: CorpusConfig,
    tokenizer: TokenizerConfig,
    seq_len: int,
    data: str | Path,
    progress: Reporter = silent,
    preparation: PreparationConfig | None = None,
) -> Manifest:
    """Prepare a corpus below `data`, or find that it is prepared already from the same inputs; it is the latest then.

    Args:
        seq_len: tokens of a sample, packing.seq_len.

    Raises:
        ConfigError: no raw files, damaged ones, too little text for a sample of each split, or an unusable tokenizer.
        DamageError: the disk is full, or what stands in the place of the corpus cannot be understood.
    """
    work = lay_out(corpus, tokenizer, seq_len, data)
    with _room_below(work), _locked(work):
        _name_unnamed(work.folder)
        store.clear_unfinished(work)
        versions = standing_versions(work.folder)
        for broken in store.drop_lost(work, versions):
            del versions[broken]
        found = find_prepared(versions, work, partial(progress, f"{corpus.name}: reading the raw files"))
        if found is None:
            make_parts(work.recipe, work.parts, partial(progress, f"{corpus.name}: tokenising"), preparation)
            found, versions[found] = _join(work)
        else:
            progress(f"{corpus.name}: already prepared", 1, 1)
        if latest_version(work.folder) != found:
            point(work.folder, found)
        store.drop_unneeded(work, standing_versions(work.folder))
    return versions[found]


def prepare_share(
    work: Work, share: int, shares: int, progress: Reporter = silent, preparation: PreparationConfig | None = None
) -> None:
    """Make every `shares`-th part of a corpus, from number `share` on; others make the rest at the same time.

    Raises:
        ConfigError: raw files are damaged, or changed meanwhile; the other parts are made.
        DamageError: the disk is full.
    """
    name = work.recipe.corpus.name
    with _room_below(work), _locked(work, shared=True):
        make_parts(work.recipe, work.parts[share::shares], partial(progress, f"{name}: tokenising"), preparation)


def missing_parts(work: Work) -> list[int] | None:
    """The numbers of the parts that are to be made; None if the latest version is this work's. Reads no raw file."""
    with _locked(work):
        versions = standing_versions(work.folder)
        for broken in store.drop_lost(work, versions):
            del versions[broken]
        found = as_listed(versions, work)
        if found is not None:
            return None if found == latest_version(work.folder) else []
        return [number for number, part in enumerate(work.parts) if read_tally(part) is None]


def _join(work: Work) -> tuple[Path, Manifest]:
    """Make the version that the parts come to, unless it stands."""
    aside = work.store / f"{UNFINISHED}version-{token_hex(4)}"
    try:
        manifest = join_parts(work.recipe, work.parts, _tallies(work), aside)
        store.mark_joined(work.parts)
        version = work.folder.with_name(version_name(work.folder.name, manifest.fingerprint))
        if version.exists():  # the same samples, but of files of other names, or it has lost some of its own
            version.rename(aside.with_name(f"{aside.name}-replaced"))
        aside.rename(version)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    sync(version.parent)
    store.clear_unfinished(work)
    return version, manifest


def _tallies(work: Work) -> list[Tally]:
    tallies = [tally for part in work.parts if (tally := read_tally(part)) is not None]
    assert len(tallies) == len(work.parts)
    return tallies


def _name_unnamed(folder: Path) -> None:
    """Give a corpus that stands in the place of the link, as earlier releases wrote it, the name of its version.

    Raises:
        DamageError: it cannot be told which that is.
    """
    if folder.is_symlink() or not folder.exists():
        return
    try:
        manifest = (folder / MANIFEST).read_bytes()
        version = folder.with_name(version_name(folder.name, json.loads(manifest)["fingerprint"]))
        if version.exists() and (version / MANIFEST).read_bytes() == manifest:
            shutil.rmtree(folder)  # a copy of that version, as whoever copies leaves it who follows links
        else:
            folder.rename(version)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamageError(
            f"{folder} stands where the link to the latest version of the corpus belongs, and cannot become one of its "
            f"versions ({error}); move it away, then prepare the corpus again"
        ) from error


@contextmanager
def _room_below(work: Work) -> Iterator[None]:
    """Says so when the room runs out."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        name, free = work.recipe.corpus.name, format_bytes(shutil.disk_usage(work.data).free)
        raise DamageError(
            f"paths.data={work.data} has no room left for corpora.{name} ({error.strerror}, {free} free); free space "
            "there, or choose another disk: the same command goes on with the parts that are missing"
        ) from error


@contextmanager
def _locked(work: Work, shared: bool = False) -> Iterator[None]:
    """One preparation of a corpus at a time, which makes all of it or, `shared`, a part; others wait."""
    folder = work.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("a+") as lock:  # network file systems want both to be allowed
        fcntl.flock(lock, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
