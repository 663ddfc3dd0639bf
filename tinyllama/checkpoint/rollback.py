"""Going back to an earlier checkpoint of a run: what came after it is given up."""

import logging

from tinyllama.checkpoint.agreement import from_main
from tinyllama.checkpoint.files import write_durably
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.checkpoint.manifest import Checkpoint, read_checkpoint
from tinyllama.checkpoint.placing import remove
from tinyllama.errors import DamageError
from tinyllama.world import World

log = logging.getLogger(__name__)


def newest_until(folder: RunFolder, digest: str, tokens: int, world: World) -> Checkpoint | None:
    """The last sound checkpoint of the run up to a position of life, if there is one. Collective."""
    return from_main(world, lambda: _newest_until(folder, digest, tokens))


def give_up_later(folder: RunFolder, checkpoint: Checkpoint, world: World) -> None:
    """Remove the checkpoints after one: a run that is killed from now on goes on from it. Collective."""
    from_main(world, lambda: _give_up_later(folder, checkpoint.progress.tokens))


def _newest_until(folder: RunFolder, digest: str, tokens: int) -> Checkpoint | None:
    for position in reversed([found for found in folder.checkpoint_tokens() if found <= tokens]):
        try:
            return read_checkpoint(folder, position, digest)
        except DamageError as error:
            log.warning("%s; trying the checkpoint before it", error)
    return None


def _give_up_later(folder: RunFolder, tokens: int) -> None:
    write_durably(folder.latest, folder.checkpoint(tokens).name + "\n")
    for position in reversed([found for found in folder.checkpoint_tokens() if found > tokens]):
        remove(folder, folder.checkpoint(position))  # the newest first: whichever is the last then fits the journals
