"""Where a run goes on: from its own last checkpoint, from its parent's, or from the beginning."""

import json
import logging
from contextlib import suppress

from tinyllama.checkpoint.agreement import from_main
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.checkpoint.manifest import Checkpoint, read_checkpoint
from tinyllama.errors import DamageError
from tinyllama.planning.plan import RunPlan
from tinyllama.planning.progress import Progress
from tinyllama.units import format_tokens
from tinyllama.world import World

log = logging.getLogger(__name__)

_TAIL_BYTES = 2**20
"""Of the journal; more than its last line takes."""


def find_start(plan: RunPlan, runs: str, world: World) -> tuple[Checkpoint | None, Progress]:
    """The state to load, if any, and the position in the stage that it stands for. Collective.

    The main rank reads and verifies every byte; the others take its word, and each then reads its own part.

    Raises:
        DamageError: there are or were checkpoints to go on from, and none of them is whole.
    """
    return from_main(world, lambda: _find_start(plan, runs))


def _find_start(plan: RunPlan, runs: str) -> tuple[Checkpoint | None, Progress]:
    folder = RunFolder.of(runs, plan)
    own = _newest_whole(folder, plan.digest)
    start = own.progress if own else Progress(step=0, samples=0, tokens=plan.start_tokens)
    _tell_what_is_lost(folder, start)
    if own is not None or plan.parent is None:
        return own, start
    return read_checkpoint(RunFolder.of(runs, plan.parent), plan.start_tokens, plan.parent.digest), start


def _newest_whole(folder: RunFolder, digest: str) -> Checkpoint | None:
    positions = folder.checkpoint_tokens()
    latest = _latest(folder)
    if latest is not None and latest > max(positions, default=0):
        log.warning("%s, the last checkpoint that was written, is missing", folder.checkpoint(latest))
    for tokens in reversed(positions):
        try:
            return read_checkpoint(folder, tokens, digest)
        except DamageError as error:
            log.warning("%s; trying the checkpoint before it", error)
    remedy = f"restore one from a copy, or remove {folder.path} to train the stage again from its start"
    if positions:
        raise DamageError(f"none of the {len(positions)} checkpoints in {folder.checkpoints} is whole; {remedy}")
    if folder.latest.exists() or folder.checkpoints.is_dir() and not any(folder.checkpoints.iterdir()):
        raise DamageError(f"the checkpoints in {folder.checkpoints} have been taken away; {remedy}")
    return None


def _latest(folder: RunFolder) -> int | None:
    """Position of the last checkpoint that was ever written; None if that is not known."""
    with suppress(OSError, ValueError):
        return int(folder.latest.read_bytes())
    return None


def _tell_what_is_lost(folder: RunFolder, start: Progress) -> None:
    """Steps that the journal tells of and no checkpoint holds are taken again: never in silence."""
    step, tokens = _last_recorded(folder)
    if step > start.step:
        log.warning(
            "no sound checkpoint holds what came after step %d: %d steps, %s tokens, are trained again",
            start.step,
            step - start.step,
            format_tokens(tokens - start.tokens),
        )


def _last_recorded(folder: RunFolder) -> tuple[int, int]:
    """Step and tokens of the last whole line of the journal."""
    if folder.metrics.is_file():
        with folder.metrics.open("rb") as file:
            file.seek(max(0, folder.metrics.stat().st_size - _TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
        for line in reversed(lines):
            with suppress(ValueError, KeyError, TypeError):
                last = json.loads(line)
                return int(last["step"]), int(last["tokens"])
    return 0, 0
