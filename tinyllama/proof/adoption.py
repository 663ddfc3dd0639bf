"""What the checkpoints of an adopted run say of its adoption."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tinyllama.checkpoint.manifest import Checkpoint
from tinyllama.errors import DamageError
from tinyllama.planning.progress import Progress


@dataclass(frozen=True)
class Adoption:
    """A state of another run that was taken in: what lies before it only that run's record vouches for."""

    path: str
    digest: str
    progress: Progress
    order_chain: str


def adoption_of(checkpoints: Sequence[Checkpoint]) -> Adoption | None:
    """How the run was adopted, if it was.

    Raises:
        DamageError: its checkpoints do not agree on it.
    """
    for before, after in pairwise(checkpoints):
        if before.adopted != after.adopted:
            raise DamageError(f"{before.path} and {after.path} do not agree on how the run was adopted")
    told = checkpoints[0].adopted if checkpoints else None
    if told is None:
        return None
    return Adoption(told["path"], told["digest"], Progress(**told["progress"]), told["order_chain"])
