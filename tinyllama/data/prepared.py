"""Whether a version that stands is what a preparation would come to."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path

from tinyllama.data.listing import RawFile, fetched
from tinyllama.data.manifest import Manifest, Source
from tinyllama.data.parts import UNFINISHED, cores, read_tally
from tinyllama.data.recipe import Work


def as_listed(versions: Mapping[Path, Manifest], work: Work) -> Path | None:
    """The version of the same recipe and of files that nobody has touched since; reads none of them."""
    for folder, manifest in versions.items():
        if _may_be(manifest, work) and tuple(map(RawFile.read, manifest.sources)) == work.files:
            return folder
    return None


def find_prepared(versions: Mapping[Path, Manifest], work: Work, progress: Callable[[int, int], None]) -> Path | None:
    """The version of the same recipe and of files of the same content.

    Only files are read that are not known, by their names, sizes and times, from a version or a part that was made.
    """
    found = as_listed(versions, work)
    candidates = [] if found else [folder for folder, manifest in versions.items() if _may_be(manifest, work)]
    if not candidates:
        return found
    made = (tally.sources for part in work.parts if (tally := read_tally(part)) is not None)
    told = chain(*(versions[folder].sources for folder in candidates), *made)
    known = {RawFile.read(source): source.sha256 for source in told}
    for folder in candidates:
        if _is_of_same_content(versions[folder].sources, work, known, progress):
            return folder
    return None


def _may_be(manifest: Manifest, work: Work) -> bool:
    """Whether it is of the same recipe, and of parts of files of the same sizes."""
    parts = list(_sources_of_parts(manifest))
    sizes = [[source.bytes for source in part] for part in parts]
    wanted = [[file.bytes for file in part.files] for part in work.parts]
    return sizes == wanted and manifest.inputs == work.recipe.inputs(parts)


def _sources_of_parts(manifest: Manifest) -> Iterator[list[Source]]:
    sources = iter(manifest.sources)
    return (list(islice(sources, part.files)) for part in manifest.parts)


def _is_of_same_content(
    sources: Sequence[Source], work: Work, known: dict[RawFile, str], progress: Callable[[int, int], None]
) -> bool:
    def content(file: RawFile) -> str:
        if file not in known:
            with fetched(file, work.store / f"{UNFINISHED}fetched") as here:
                known[file] = here.sha256
        return known[file]

    with ThreadPoolExecutor(cores()) as pool:
        for number, (source, sha256) in enumerate(zip(sources, pool.map(content, work.files), strict=True)):
            if sha256 != source.sha256:
                pool.shutdown(wait=False, cancel_futures=True)
                return False
            progress(number + 1, len(work.files))
    return True
