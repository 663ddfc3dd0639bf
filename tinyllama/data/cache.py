"""How much of a remote's shards a node keeps. Light: what is set too small is told before anything starts."""

import math
from collections.abc import Iterable

from tinyllama.config.checks import processes_per_node
from tinyllama.config.schema import RunConfig
from tinyllama.data.manifest import Manifest
from tinyllama.errors import ConfigError
from tinyllama.units import format_bytes

DOWNLOADS = 4
"""Shards that a reader fetches ahead, at a time."""
_KEPT = 4
"""Shards that streaming wants to have room for, beside those that arrive."""
_PACKED = 1.02
"""A shard that zstd cannot make smaller becomes larger by less than this."""
_ENTRY_BYTES = 640
"""A shard's entry in its index, at most."""


def cache_limit(config: RunConfig, manifests: Iterable[Manifest]) -> int | None:
    """Bytes that streaming may fill on a node with the shards of these corpora; None: without limit.

    It does not count a shard before it has arrived, so what arrives at a time is kept free for that.

    Raises:
        ConfigError: cluster.cache_gib is less than what the readers of a node need at a time.
    """
    cluster = config.cluster
    if config.paths.remote is None or cluster.cache_gib is None:
        return None
    manifests = list(manifests)
    shard = max(map(_largest_shard, manifests), default=0)
    indices = sum(_ENTRY_BYTES * len(manifest.train.shard_samples) for manifest in manifests)
    ranks, workers = processes_per_node(cluster), max(1, cluster.workers)
    arriving = ranks * workers * (DOWNLOADS + 1)
    both = math.ceil(shard * (1 + _PACKED))
    needed, given = (arriving + _KEPT) * both + indices, int(cluster.cache_gib * 2**30)
    if given < needed:
        raise ConfigError(
            f"cluster.cache_gib={cluster.cache_gib:g} holds less than the {format_bytes(needed)} that a node needs at "
            f"a time: {arriving} shards that arrive ({ranks} ranks x {workers} readers x {DOWNLOADS + 1}) and {_KEPT} "
            f"that stay, each of {format_bytes(both)} packed and unpacked, and {format_bytes(indices)} of indices; set "
            f"cluster.cache_gib={_rounded_up(needed / 2**30)} or more"
        )
    return given - arriving * both


def _largest_shard(manifest: Manifest) -> int:
    """Bytes, unpacked."""
    samples = sum(split.samples for split in manifest.splits.values())
    return math.ceil(manifest.bytes / max(1, samples) * max(manifest.train.shard_samples, default=0))


def _rounded_up(value: float) -> str:
    """To two digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value / unit) * unit:.2g}"
