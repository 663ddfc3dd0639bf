"""The order chain of a run, made anew from its plan alone, against what its checkpoints carry."""

from collections.abc import Sequence

from tinyllama.checkpoint.manifest import MANIFEST, Checkpoint
from tinyllama.errors import DamageError
from tinyllama.planning.chain import planned_chain
from tinyllama.proof.adoption import Adoption, adoption_of
from tinyllama.proof.examination import Tell
from tinyllama.proof.record import Record


class OrderProof:
    """The chain through a run and its ancestors, one after the other; begins with `chain` at the root."""

    def __init__(self, chain: str, tell: Tell):
        self._chain: str | None = chain
        self._tell = tell

    def check(self, record: Record, checkpoints: Sequence[Checkpoint], child: Record | None) -> str:
        """Compare at every checkpoint of the run, and go on to where its child starts."""
        begins, self._chain = self._chain, None  # lost for the descendants unless all is well
        adopted, plan = adoption_of(checkpoints), record.plan
        if adopted is not None:
            begins = adopted.order_chain
        if begins is None:
            raise DamageError(f"what {record.name} continues is in doubt, so its own order proves nothing")
        start = adopted.progress.samples if adopted else 0
        held = {each.progress.samples: each for each in checkpoints}
        stops = sorted(held.keys() - {start})
        chains = {start: begins}
        for position, chain in planned_chain(plan.order, plan.batch_samples, start, stops, begins):
            chains[position] = chain
            self._tell(f"order of {record.name}", position, stops[-1])
        for position, checkpoint in held.items():
            if checkpoint.order_chain != chains.get(position):
                raise DamageError(
                    f"{checkpoint.path / MANIFEST}: the order chain is {checkpoint.order_chain[:12]}, but the plan's "
                    f"samples give {chains.get(position, 'none')[:12]}: it was trained on others, or in another order"
                )
        if child is not None:
            ends = (child.plan.start_tokens - plan.start_tokens) // plan.seq_len
            if ends not in held:
                raise DamageError(f"{record.folder.checkpoints} has no sound checkpoint where {child.name} starts")
            self._chain = chains[ends]
        return _told(checkpoints, adopted)


def _told(checkpoints: Sequence[Checkpoint], adopted: Adoption | None) -> str:
    if not checkpoints:
        return "no checkpoint yet"
    told = f"the plan's samples give the chain of every checkpoint, {checkpoints[-1].order_chain[:12]} at the last"
    if adopted is None:
        return told
    return (
        f"{told}; up to step {adopted.progress.step} the run was adopted from {adopted.digest[:12]} ({adopted.path}), "
        f"whose record alone vouches for that part"
    )
