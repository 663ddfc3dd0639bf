"""The order chain: one hash that stands for every sample from the root of the family to a step, in order.

A step adds itself by h = sha256(h of the step before, then its samples in batch order), each sample as three
little-endian int64: the corpus' number, the draw, the sample's id. So the chain depends on what was read in which
order, and on nothing of the machines, the micro-batches or where a run was interrupted.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tinyllama.planning.order import SampleOrder, Samples

ROOT = "0" * 64
"""The chain before the first sample."""

_CHUNK_SAMPLES = 2**15
"""Looked up at a time; arrays of this length stay in a processor's cache."""

Rows = NDArray[np.int64]
"""[samples, 3]"""


def rows_of(samples: Samples, names: Sequence[str]) -> Rows:
    """What the chain takes in of some samples, in their order; `names` are those of the order that gave them."""
    numbers = np.array([_number(name) for name in names], np.int64)
    return np.stack([numbers[samples.corpus], samples.draw, samples.sample_id], axis=-1)


def extend(chain: str, rows: Rows, batch_samples: int) -> str:
    """The chain after whole steps of `batch_samples` rows each."""
    assert len(rows) % batch_samples == 0, f"{len(rows)} samples are no whole steps of {batch_samples}"
    state = bytes.fromhex(chain)
    for step in np.ascontiguousarray(rows, "<i8").reshape(-1, batch_samples * 3):
        state = hashlib.sha256(state + step.tobytes()).digest()
    return state.hex()


def planned_chain(
    order: SampleOrder, batch_samples: int, start: int, stops: Sequence[int], chain: str
) -> Iterator[tuple[int, str]]:
    """What becomes of `chain` as a stage reads on from position `start`, in whole steps: (position, chain).

    It comes by each of `stops`, which rise, ends at the last, and looks in now and then on the way.
    """
    stride = max(1, _CHUNK_SAMPLES // batch_samples) * batch_samples
    for stop in stops:
        while start < stop:
            end = min(start + stride, stop)
            chain = extend(chain, rows_of(order.samples(np.arange(start, end)), order.names), batch_samples)
            start = end
            yield start, chain


def _number(name: str) -> int:
    """What stands for a corpus, whatever other corpora a run has."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little", signed=True)
