"""Whether a run fits into the memory of its GPUs, and which settings of its cluster would make it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tinyllama.config.checks import processes_per_node
from tinyllama.config.schema import RunConfig
from tinyllama.planning.memory import estimate_memory

_Change = Mapping[str, Any]
"""Settings of the cluster, and other values for them."""


def certain_gib(config: RunConfig) -> float:
    """What is needed in any case: of a micro-batch that is still to be found only what does not grow with it."""
    memory = estimate_memory(config)
    if config.cluster.micro_batch_is_auto:
        memory = replace(memory, activations=0, logits=0, recomputed=0)
    return memory.gib


def what_fits(config: RunConfig, room: float, batch: int) -> str:
    """The changes of one setting each that bring the run into `room` GiB; of two, where one is not enough.

    Micro-batches are such that `batch` samples can be cut into them.
    """
    cluster = config.cluster
    ranks = cluster.nodes * processes_per_node(cluster)
    sizes = range(0 if cluster.micro_batch_is_auto else cluster.micro_batch - 1, 0, -1)
    smaller: list[_Change] = [{"micro_batch": size} for size in sizes if batch % (size * ranks) == 0]
    checkpointing: _Change = {"activation_checkpointing": True}
    sharding: list[_Change] = [{"zero_stage": stage} for stage in range(cluster.zero_stage + 1, 4)]
    with_checkpointing = [{**checkpointing, **each} for each in (*smaller, *sharding)]

    def fits(change: _Change) -> bool:
        return certain_gib(replace(config, cluster=replace(cluster, **change))) <= room

    for ways in ([smaller, [checkpointing], sharding], [with_checkpointing]):
        found = [fitting for each in ways if (fitting := next(filter(fits, each), None))]
        if found:
            return f"set {' or '.join(_settings(change) for change in found)}"
    return "choose a smaller model or a cluster whose GPUs have more memory"


def _settings(change: _Change) -> str:
    return " ".join(f"cluster.{name}={str(value).lower()}" for name, value in change.items())
