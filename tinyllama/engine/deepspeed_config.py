"""Cluster and optimizer settings -> DeepSpeed JSON. Pure; engine/zero.py calls it.

Every default that matters is written out: they have changed between releases of DeepSpeed.
"""

from typing import Any

from tinyllama.config.schema import ClusterConfig, OptimizerConfig
from tinyllama.errors import ConfigError
from tinyllama.planning.memory import BUCKET_ELEMENTS
from tinyllama.world import World

ZERO_STAGES = (1, 2, 3)

_NEVER = 1_000_000_000


def deepspeed_config(
    optimizer: OptimizerConfig, cluster: ClusterConfig, accumulation: int, world: World, bf16: bool
) -> dict[str, Any]:
    """What deepspeed.initialize is given.

    Raises:
        ConfigError: a ZeRO stage that cannot train this model, or sharding within a node without stage 3.
    """
    _check(cluster)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": cluster.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": optimizer.max_grad_norm,
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": _zero(cluster, world),
        "zero_allow_untested_optimizer": True,
        "steps_per_print": _NEVER,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},
    }
    if bf16:
        # With stage 1 and fp32 accumulation this selects BF16_Optimizer, which adds each gradient to its fp32 sum as
        # soon as backward has it.
        config["bf16"] = {"enabled": True, "immediate_grad_update": True, "check_grad_overflow": True}
    return config


def _zero(cluster: ClusterConfig, world: World) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "stage": cluster.zero_stage,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "round_robin_gradients": False,
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_bucket_size": BUCKET_ELEMENTS,
    }
    if cluster.shard_within_node and world.local_size < world.size:
        # hpZ: a second copy of the weights is spread over the ranks of each node, so that the backward pass gathers
        # them without leaving it.
        settings["zero_hpz_partition_size"] = world.local_size
    return settings


def _check(cluster: ClusterConfig) -> None:
    if cluster.zero_stage not in ZERO_STAGES:
        why = "; stage 0 applies steps whose gradient is not finite and cannot accumulate bf16 gradients in fp32"
        raise ConfigError(
            f"cluster.zero_stage={cluster.zero_stage} is none of {', '.join(map(str, ZERO_STAGES))}"
            f"{why if cluster.zero_stage == 0 else ''}; use 1, on a single GPU too"
        )
    if cluster.shard_within_node and cluster.zero_stage != 3:
        raise ConfigError(
            f"cluster.shard_within_node=true shards weights, which cluster.zero_stage={cluster.zero_stage} does not; "
            "set cluster.zero_stage=3, or cluster.shard_within_node=false"
        )
