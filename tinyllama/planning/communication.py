"""What ranks send one another in an optimizer step, by arithmetic, and about how long it takes (docs/scaling.md).

The terms are the collectives that DeepSpeed 0.19.8 makes of our settings; tests/engine/test_communication.py counts the
real ones. None overlaps with computation: engine/deepspeed_config.py says so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tinyllama.config.checks import total_ranks
from tinyllama.config.schema import ClusterConfig, RunConfig
from tinyllama.planning.flops import num_parameters
from tinyllama.planning.memory import BUCKET_ELEMENTS, LIVE_ELEMENTS, bytes_per_weight

NODE_HOP_SECONDS = 4e-6
NETWORK_HOP_SECONDS = 14e-6
"""What a piece takes from one rank to the next, whatever its size; of the order that NCCL's own tuning reckons with."""


@dataclass(frozen=True)
class Exchange:
    """Collectives of one kind in a step."""

    payload: int
    """Bytes of the whole tensors, all calls together."""
    calls: int
    trips: int
    """How often a ring passes it on: twice for an all-reduce, once for an all-gather and a reduce-scatter."""
    within_node: bool = False
    strided: bool = False
    """Among the ranks that have the same place in their nodes, all such groups at once."""


@dataclass(frozen=True)
class Shape:
    """Ranks of a run."""

    nodes: int
    local: int
    """Of each node."""

    @property
    def ranks(self) -> int:
        return self.nodes * self.local


@dataclass(frozen=True)
class Work:
    """What is trained, as far as communication depends on it."""

    parameters: int
    weight_bytes: int
    """Of each parameter, as the forward pass reads it."""
    accumulation: int
    """Micro-batches of a step."""


@dataclass(frozen=True)
class Communication:
    """Of one rank, in an optimizer step."""

    layout: str
    """Its key in LAYOUTS."""
    sent_bytes: int
    seconds: float | None
    """None where a bandwidth that it takes is not known."""

    def share_of(self, step_seconds: float | None) -> float | None:
        """Of a step of so many seconds."""
        return None if self.seconds is None or step_seconds is None else self.seconds / step_seconds


def communication(config: RunConfig, batch_samples: int) -> Communication:
    """What training on the configured cluster sends."""
    cluster = config.cluster
    ranks = total_ranks(cluster)
    shape = Shape(cluster.nodes, max(1, ranks // cluster.nodes))
    accumulation = max(1, batch_samples // (ranks * cluster.micro_batch))
    work = Work(num_parameters(config.model), bytes_per_weight(cluster), accumulation)
    layout = layout_of(cluster, shape)
    exchanges = LAYOUTS[layout](work, shape)
    return Communication(layout, sent_bytes(exchanges, shape), seconds(exchanges, shape, cluster))


def layout_of(cluster: ClusterConfig, shape: Shape) -> str:
    """How the cluster's settings spread the model."""
    if cluster.zero_stage < 3:
        return f"ZeRO {cluster.zero_stage}"
    return "ZeRO 3 within nodes" if cluster.shard_within_node and shape.nodes > 1 else "ZeRO 3"


def sent_bytes(exchanges: Sequence[Exchange], shape: Shape) -> int:
    """What each rank sends, and gets, in a step."""
    return sum(int(each.trips * each.payload * _share(_group(each, shape))) for each in exchanges)


def seconds(exchanges: Sequence[Exchange], shape: Shape, cluster: ClusterConfig) -> float | None:
    """How long they take one after the other, by NCCL's rings at the cluster's bandwidths, or None without those."""
    spent = 0.0
    for each in exchanges:
        group = _group(each, shape)
        if group > 1:
            per_byte = _seconds_per_byte(each, shape, cluster)
            if per_byte is None:
                return None
            spent += each.trips * (each.payload * _share(group) * per_byte + each.calls * _round(each, shape))
    return spent


def _seconds_per_byte(exchange: Exchange, shape: Shape, cluster: ClusterConfig) -> float | None:
    """Of what each rank passes on: by the slower of the links that the rings take."""
    links: list[tuple[float | None, int]] = []  # bandwidth of a GPU, and how many of them the rings are shared among
    if shape.local > 1 and not exchange.strided:
        links.append((cluster.node_gb_per_second, 1))
    if _crosses(exchange, shape):
        links.append((cluster.network_gb_per_second, 1 if exchange.strided else shape.local))
    known = [1 / (bandwidth * 1e9 * rings) for bandwidth, rings in links if bandwidth is not None]
    return max(known) if len(known) == len(links) else None


def _round(exchange: Exchange, shape: Shape) -> float:
    """Seconds of a piece's way round the ring, whatever its size."""
    over_network = shape.nodes if _crosses(exchange, shape) else 0
    return over_network * NETWORK_HOP_SECONDS + (_group(exchange, shape) - over_network) * NODE_HOP_SECONDS


def _crosses(exchange: Exchange, shape: Shape) -> bool:
    return shape.nodes > 1 and not exchange.within_node


def _share(group: int) -> float:
    """Of a payload, what each of a ring's ranks passes on in one trip."""
    return (group - 1) / group


def _group(exchange: Exchange, shape: Shape) -> int:
    if exchange.within_node:
        return shape.local
    return shape.nodes if exchange.strided else shape.ranks


# ---------------------------------------------------------------- layouts

_GRADIENT_BYTES = 4
"""Gradients travel in fp32."""
_ALL_REDUCE_ELEMENTS = 500_000_000
"""DeepSpeed's own limit where it reduces without ZeRO's buckets."""


def _calls(elements: int, at_a_time: int = BUCKET_ELEMENTS) -> int:
    return -(-elements // at_a_time)


def _replicated(work: Work, shape: Shape) -> list[Exchange]:
    calls = _calls(work.parameters, _ALL_REDUCE_ELEMENTS)
    return [Exchange(_GRADIENT_BYTES * work.parameters, calls, trips=2)]


def _zero_1(work: Work, shape: Shape) -> list[Exchange]:
    return [*_replicated(work, shape), _gather(work)]


def _zero_2(work: Work, shape: Shape) -> list[Exchange]:
    """Gradients are reduced in each micro-batch, to all ranks, of which each keeps its part."""
    calls = work.accumulation * _calls(work.parameters)
    reduced = Exchange(_GRADIENT_BYTES * work.parameters * work.accumulation, calls, trips=2)
    return [reduced, _gather(work)]


def _zero_3(work: Work, shape: Shape) -> list[Exchange]:
    """Weights are gathered in each micro-batch, again for the backward pass as far as they are too many to be kept."""
    elements = work.accumulation * (work.parameters + max(0, work.parameters - LIVE_ELEMENTS))
    return [Exchange(work.weight_bytes * elements, _calls(elements), trips=1), _scatter(work)]


def _zero_3_within_nodes(work: Work, shape: Shape) -> list[Exchange]:
    """The first micro-batch gathers from all ranks, the others from the node, which has a whole copy since."""
    again = (work.accumulation - 1) * work.parameters + work.accumulation * max(0, work.parameters - LIVE_ELEMENTS)
    inside = Exchange(work.weight_bytes * again, _calls(again), trips=1, within_node=True)
    return [_gather(work), inside, _scatter(work)]


def _hybrid(work: Work, shape: Shape) -> list[Exchange]:
    """Weights and gradients sharded within nodes, and gradients reduced between them once a step: not in DeepSpeed."""
    gathered = 2 * work.accumulation * work.parameters
    share = work.parameters // shape.local
    return [
        Exchange(work.weight_bytes * gathered, _calls(gathered), trips=1, within_node=True),
        Exchange(_scatter(work).payload, _scatter(work).calls, trips=1, within_node=True),
        Exchange(_GRADIENT_BYTES * share, _calls(share), trips=2, strided=True),
    ]


def _gather(work: Work) -> Exchange:
    """The weights after a step, once."""
    return Exchange(work.weight_bytes * work.parameters, calls=1, trips=1)


def _scatter(work: Work) -> Exchange:
    """The gradients of each micro-batch, to the rank that keeps them."""
    elements = work.accumulation * work.parameters
    return Exchange(_GRADIENT_BYTES * elements, _calls(elements), trips=1)


LAYOUTS: Mapping[str, Callable[[Work, Shape], list[Exchange]]] = {
    "replicated": _replicated,
    "ZeRO 1": _zero_1,
    "ZeRO 2": _zero_2,
    "ZeRO 3": _zero_3,
    "ZeRO 3 within nodes": _zero_3_within_nodes,
    "hybrid": _hybrid,
}
"""The first and the last for comparison: the engine has neither."""
