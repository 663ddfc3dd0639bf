"""Groups of raw files -> parts of a prepared corpus, in parallel.

A part is a folder with the shards of both splits and a tally, which says what its files were; it appears under its name
when it is whole. An interrupted preparation goes on with the parts that are missing. What a part holds depends on its
files and the recipe alone, never on the number of processes, the machines that share the work, or what encodes.
"""

import json
import multiprocessing
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from itertools import repeat
from pathlib import Path
from secrets import token_hex
from threading import Thread
from typing import Any

from tinyllama.config.schema import PreparationConfig, TokenizerEngine
from tinyllama.data.disk import sync, sync_tree
from tinyllama.data.gate import objection
from tinyllama.data.listing import RawFile
from tinyllama.data.manifest import Source
from tinyllama.data.pack import DifferentIds, Tally, pack
from tinyllama.data.recipe import Part, Recipe
from tinyllama.data.tokenizer import Tokenizer
from tinyllama.errors import ConfigError, TinyllamaError

# Starting a process takes as long as tokenising about this much.
PROCESS_BYTES = 1 << 22
RESULT = "part.json"
# Begins the names of parts at which somebody is at work, or was killed.
UNFINISHED = "."
ERRORS_TOLD = 10


def make_parts(
    recipe: Recipe,
    parts: Sequence[Part],
    progress: Callable[[int, int], None],
    preparation: PreparationConfig | None = None,
) -> None:
    """Make those parts that are missing, or whose files have changed since they were made.

    Raises:
        ConfigError: raw files are damaged, or changed meanwhile; the other parts are made.
    """
    preparation = preparation or PreparationConfig()
    missing = [part for part in parts if read_tally(part) is None]
    for folder in {part.folder.parent for part in missing}:
        folder.mkdir(parents=True, exist_ok=True)
    done = len(parts) - len(missing)
    progress(done, len(parts))
    worthwhile = 1 + sum(file.bytes for part in missing for file in part.files) // PROCESS_BYTES
    processes = preparation.processes or min(cores(), worthwhile)
    errors: list[ConfigError] = []
    fast = bool(missing) and preparation.engine is TokenizerEngine.kitoken and _is_proven(recipe, missing)
    warned = False
    for outcome in _in_parallel(recipe, missing, processes, fast):
        if isinstance(outcome, ConfigError):
            errors.append(outcome)
            continue
        if outcome and not warned:
            _warn(recipe, f"it encodes {outcome} differently")
            warned = True
        done += 1
        progress(done, len(parts))
    if errors:
        raise _together(errors)


def read_tally(part: Part) -> Tally | None:
    """What a part came to; None if it is to be made: it is missing, or of files that were not yet what they are."""
    try:
        fields: dict[str, Any] = json.loads((part.folder / RESULT).read_bytes())
        counters = {name: Counter(fields[name]) for name in ("documents", "skipped", "noted")}
        tally = Tally(**fields | counters | {"sources": [Source(**source) for source in fields["sources"]]})
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # the latter: of another version
        return None
    return tally if tuple(map(RawFile.read, tally.sources)) == part.files else None


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def _is_proven(recipe: Recipe, parts: Sequence[Part]) -> bool:
    """Whether kitoken has shown that it gives sentencepiece's ids; says so where it has not."""
    files = [file for part in parts for file in part.files]
    scratch = parts[0].folder.with_name(f"{UNFINISHED}sample-{token_hex(4)}")
    try:
        why_not = objection(Tokenizer.load(recipe.tokenizer), recipe.corpus, files, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if why_not is not None:
        _warn(recipe, why_not)
    return why_not is None


def _warn(recipe: Recipe, why_not: str) -> None:
    name = recipe.corpus.name
    print(
        f"warning: corpora.{name} is not encoded by preparation.engine=kitoken: {why_not}; sentencepiece is used",
        file=sys.stderr,
    )


_Outcome = ConfigError | str | None
"""What is wrong with a part's files; or on which document kitoken was wrong, which was put right."""


def _in_parallel(recipe: Recipe, parts: Sequence[Part], processes: int, fast: bool) -> Iterator[_Outcome]:
    if min(processes, len(parts)) <= 1:
        yield from (_make_part(recipe, part, fast) for part in parts)
        return
    # A fork server imports once, and unlike a plain fork inherits no thread of ours in mid-lock.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(min(processes, len(parts)), context, _end_with_parent) as pool:
        try:
            yield from pool.map(_make_part, repeat(recipe), parts, repeat(fast))
        except BrokenProcessPool as error:
            raise TinyllamaError(
                f"a process that prepared corpora.{recipe.corpus.name} was killed, perhaps for want of memory; the "
                "same command goes on with the parts that are missing"
            ) from error


def _end_with_parent() -> None:
    """Have this process end when the one that it works for is killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _make_part(recipe: Recipe, part: Part, fast: bool = False) -> _Outcome:
    differs = None
    try:
        try:
            _make(recipe, part, fast)
        except DifferentIds as error:
            differs = str(error)
            _make(recipe, part, fast=False)
    except ConfigError as error:
        return error
    return differs


def _make(recipe: Recipe, part: Part, fast: bool) -> None:
    # Under a name that no other process uses: where a cluster starts a task anew, the old one may still be at work.
    aside = part.folder.with_name(f"{UNFINISHED}{part.folder.name}-{token_hex(4)}")
    aside.mkdir()
    try:
        tally = pack(recipe, part.files, aside, Tokenizer.load(recipe.tokenizer), fast)
        fields = vars(tally) | {"sources": [asdict(source) for source in tally.sources]}
        (aside / RESULT).write_text(json.dumps(fields), encoding="utf-8")
        sync_tree(aside)
        _give_name(aside, part)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _give_name(aside: Path, part: Part) -> None:
    """Put a part under its name, unless another process at the same part was faster."""
    if read_tally(part) is not None:
        return
    shutil.rmtree(part.folder, ignore_errors=True)  # what older files came to
    try:
        aside.rename(part.folder)
    except OSError:
        if read_tally(part) is None:
            raise
    sync(part.folder.parent)


def _together(errors: Sequence[ConfigError]) -> ConfigError:
    """All that is wrong, in the order of the files; each thing once."""
    told = list(dict.fromkeys(map(str, errors)))
    more = [f"and {len(told) - ERRORS_TOLD} more"] if len(told) > ERRORS_TOLD else []
    return ConfigError("\n".join([*told[:ERRORS_TOLD], *more]))
