"""Where a run goes on: from its own last checkpoint, from its parent's, or from the beginning."""

import logging

from tinyllama.checkpoint.layout import RunFolder
from tinyllama.checkpoint.manifest import Checkpoint, read_checkpoint
from tinyllama.errors import DamageError
from tinyllama.planning.plan import RunPlan
from tinyllama.planning.progress import Progress

log = logging.getLogger(__name__)


def find_start(plan: RunPlan, runs: str) -> tuple[Checkpoint | None, Progress]:
    """The state to load, if any, and the position in the stage that it stands for.

    Raises:
        DamageError: there are checkpoints to go on from, and none of them is whole.
    """
    own = _newest_whole(RunFolder.of(runs, plan), plan.digest)
    if own is not None:
        return own, own.progress
    beginning = Progress(step=0, samples=0, tokens=plan.start_tokens)
    if plan.parent is None:
        return None, beginning
    parent = RunFolder.of(runs, plan.parent)
    return read_checkpoint(parent, plan.start_tokens, plan.parent.digest), beginning


def _newest_whole(folder: RunFolder, digest: str) -> Checkpoint | None:
    positions = folder.checkpoint_tokens()
    for tokens in reversed(positions):
        try:
            return read_checkpoint(folder, tokens, digest)
        except DamageError as error:
            log.warning("%s; trying the checkpoint before it", error)
    if positions:
        raise DamageError(
            f"none of the {len(positions)} checkpoints in {folder.checkpoints} is whole; restore one from a copy, "
            f"or remove {folder.path} to train the stage again from its start"
        )
    return None
