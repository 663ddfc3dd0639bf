"""The arithmetic of what ranks send; what engines really send is counted in tests/engine/test_communication.py."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tinyllama.config.schema import ClusterConfig, RunConfig
from tinyllama.planning.communication import (
    LAYOUTS,
    NETWORK_HOP_SECONDS,
    NODE_HOP_SECONDS,
    Exchange,
    Shape,
    Work,
    communication,
    seconds,
    sent_bytes,
)
from tinyllama.planning.cost import assumed_throughput
from tinyllama.planning.flops import num_parameters

GB = 10**9
DOC = Path(__file__).parents[2] / "docs/scaling.md"
RUNS = {  # ranks: samples of a batch, samples of a micro-batch
    4: (896, 14), 8: (896, 14), 32: (896, 14), 64: (896, 14), 128: (896, 7), 512: (3584, 7), 4096: (4096, 1),
}  # fmt: skip


@pytest.fixture
def linked() -> ClusterConfig:
    return ClusterConfig(name="test", micro_batch=1, node_gb_per_second=100, network_gb_per_second=10)


@pytest.fixture
def h100(compose: Callable[..., tuple[RunConfig, ...]]) -> RunConfig:
    return compose("stage=basic", "cluster=h100_x8")[-1]


def on(config: RunConfig, **settings: Any) -> RunConfig:
    return replace(config, cluster=replace(config.cluster, **settings))


def test_one_rank_sends_nothing_and_waits_for_nothing(linked) -> None:
    for layout in LAYOUTS.values():
        exchanges = layout(Work(1000, 2, 4), Shape(1, 1))
        assert sent_bytes(exchanges, Shape(1, 1)) == 0
        assert seconds(exchanges, Shape(1, 1), linked) == 0


def test_in_a_node_a_ring_takes_what_each_rank_passes_on_and_a_hop_for_each_step(linked) -> None:
    exchange, shape = Exchange(100 * GB, calls=3, trips=2), Shape(1, 4)
    assert sent_bytes([exchange], shape) == 150 * GB
    assert seconds([exchange], shape, linked) == pytest.approx(1.5 + 3 * 2 * 4 * NODE_HOP_SECONDS)


def test_between_nodes_each_gpu_carries_a_ring_of_its_own_over_the_network(linked) -> None:
    exchange, shape = Exchange(100 * GB, calls=1, trips=1), Shape(8, 4)
    passed, hops = 100 * 31 / 32, 8 * NETWORK_HOP_SECONDS + 24 * NODE_HOP_SECONDS
    assert seconds([exchange], shape, linked) == pytest.approx(passed / 4 / 10 + hops)  # the network is slower
    fast = replace(linked, network_gb_per_second=1000)
    assert seconds([exchange], shape, fast) == pytest.approx(passed / 100 + hops)  # the node is
    assert seconds([exchange], Shape(8, 1), linked) == pytest.approx(100 * 7 / 8 / 10 + 8 * NETWORK_HOP_SECONDS)


@pytest.mark.parametrize(
    "lacking, shape, known",
    [
        ("node_gb_per_second", Shape(1, 8), False),
        ("node_gb_per_second", Shape(2, 1), True),
        ("network_gb_per_second", Shape(1, 8), True),
        ("network_gb_per_second", Shape(2, 8), False),
    ],
)
def test_time_is_known_where_the_bandwidths_are_that_it_takes(linked, lacking: str, shape: Shape, known: bool) -> None:
    exchanges = LAYOUTS["ZeRO 1"](Work(1000, 2, 1), shape)
    assert (seconds(exchanges, shape, replace(linked, **{lacking: None})) is not None) is known


def test_shards_within_nodes_cross_the_network_once_a_step_with_weights(linked) -> None:
    shape = Shape(4, 8)
    within, across = (LAYOUTS[name](Work(GB, 2, 8), shape) for name in ("ZeRO 3 within nodes", "ZeRO 3"))
    assert sum(each.payload for each in within) == sum(each.payload for each in across)
    assert sum(each.payload for each in within if not each.within_node and each.trips == 1) == 2 * GB + 8 * 4 * GB
    assert seconds(within, shape, linked) < seconds(across, shape, linked)


def test_a_cluster_of_the_conf_is_reckoned_with_its_own_layout_and_accumulation(h100) -> None:
    parameters = num_parameters(h100.model)
    once = communication(on(h100, nodes=1), batch_samples=8 * 14)
    assert once.layout == "ZeRO 1"
    assert once.sent_bytes == pytest.approx((2 * 4 + 2) * parameters * 7 / 8)
    twice = communication(on(h100, nodes=1, zero_stage=2), batch_samples=2 * 8 * 14)
    assert twice.sent_bytes == pytest.approx((2 * 2 * 4 + 2) * parameters * 7 / 8)
    sharded = communication(on(h100, nodes=2, zero_stage=3, shard_within_node=True), batch_samples=16 * 14)
    assert sharded.layout == "ZeRO 3 within nodes"


def test_the_tables_of_the_docs_are_what_the_functions_say(h100) -> None:
    lines = DOC.read_text(encoding="utf-8").splitlines()
    for line in table(h100):
        assert line in lines


def table(config: RunConfig) -> Iterator[str]:
    """Lines of docs/scaling.md: gigabytes that a rank sends in a step, and their share of its time."""
    rate = assumed_throughput(config).tokens_per_second_per_gpu
    assert rate is not None
    for ranks, (batch, micro_batch) in RUNS.items():
        shape = Shape(max(1, ranks // 8), min(8, ranks))
        work = Work(num_parameters(config.model), 2, batch // (ranks * micro_batch))
        step = batch * config.model.seq_len / (rate * ranks)
        cells = []
        for layout in LAYOUTS.values():
            exchanges = layout(work, shape)
            spent = seconds(exchanges, shape, config.cluster)
            assert spent is not None
            cells.append(f"{sent_bytes(exchanges, shape) / GB:.1f}, {spent / (spent + step):.0%}")
        tokens = f"{batch * config.model.seq_len / 1e6:.1f}M"
        yield f"| {' | '.join([f'{ranks:,}', tokens, f'{work.accumulation} x {micro_batch}', *cells])} |"
