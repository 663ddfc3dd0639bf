"""The JSON that DeepSpeed is given, reviewed as text in tests/golden/deepspeed/."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import OPTIMIZER, cluster
from tinyllama.engine.deepspeed_config import deepspeed_config
from tinyllama.errors import ConfigError
from tinyllama.world import World

GOLDEN = Path(__file__).parents[1] / "golden" / "deepspeed"
NODES_OF_FOUR = World(rank=5, size=64, local_rank=1, local_size=4)
CASES: dict[str, tuple[dict[str, Any], World, bool]] = {
    "cpu_fp32": ({}, World(), False),
    "stage1_bf16": ({"micro_batch": 14}, NODES_OF_FOUR, True),
    "stage2_bf16": ({"micro_batch": 14, "zero_stage": 2}, NODES_OF_FOUR, True),
    "stage3_within_node": ({"micro_batch": 14, "zero_stage": 3, "shard_within_node": True}, NODES_OF_FOUR, True),
}


@pytest.mark.parametrize("name", CASES)
def test_the_json_is_the_reviewed_one(name: str) -> None:
    settings, world, bf16 = CASES[name]
    made = deepspeed_config(OPTIMIZER, cluster(**settings), accumulation=4, world=world, bf16=bf16)
    assert made == json.loads((GOLDEN / f"{name}.json").read_text())


def test_on_one_node_sharding_within_it_is_plain_stage_3() -> None:
    one_node = World(size=4, local_size=4)
    within, plain = (cluster(zero_stage=3, shard_within_node=choice) for choice in (True, False))
    made = [deepspeed_config(OPTIMIZER, layout, 4, one_node, bf16=True) for layout in (within, plain)]
    assert made[0] == made[1]


@pytest.mark.parametrize("stage", [0, 4, -1])
def test_a_stage_that_cannot_train_is_refused(stage: int) -> None:
    with pytest.raises(ConfigError, match=f"cluster.zero_stage={stage} is none of 1, 2, 3.*use 1") as caught:
        deepspeed_config(OPTIMIZER, cluster(zero_stage=stage), 1, World(), bf16=False)
    assert ("not finite" in str(caught.value)) == (stage == 0)


def test_sharding_within_a_node_needs_stage_3() -> None:
    with pytest.raises(
        ConfigError, match="cluster.shard_within_node=true.*cluster.zero_stage=1.*set cluster.zero_stage=3"
    ):
        deepspeed_config(OPTIMIZER, cluster(shard_within_node=True), 1, World(), bf16=False)
