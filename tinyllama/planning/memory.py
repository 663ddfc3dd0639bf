"""Bytes that a rank needs at the peak of an optimizer step, by arithmetic; nothing is allocated.

The terms are what our model and DeepSpeed 0.19.8 keep; tests/engine/test_memory.py counts the real tensors.
"""

from dataclasses import dataclass, fields

from tinyllama.config.checks import processes_per_node
from tinyllama.config.schema import ClusterConfig, ModelConfig, Precision, RunConfig
from tinyllama.planning.flops import num_parameters
from tinyllama.world import visible_gpus

BUCKET_ELEMENTS = 50_000_000
"""Gradients and weights travel in pieces of this many elements; engine/deepspeed_config.py says so to DeepSpeed."""

_LIVE_ELEMENTS = 1_000_000_000
"""Stage 3 keeps up to this many gathered parameters between the forward and the backward pass."""
_LOGIT_BYTES = 12
"""Of each logit, when the backward pass begins: its log-probability and two gradients, all in fp32."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank. `total` does not hold what the allocator wastes, nor the GPU's context (about 0.5 GiB)."""

    parameters: int
    """What the forward pass reads; with stage 3 the rank's part, and the whole that is gathered from the ranks."""
    gradients: int
    """Their sums over micro-batches."""
    master: int
    optimizer: int
    buffers: int
    """Communication's, held all through the step."""
    activations: int
    """What the forward pass keeps for the backward pass, besides the logits."""
    logits: int
    recomputed: int
    """A block's activations, computed again in the backward pass under activation checkpointing."""
    reduction: int
    """The largest gradients on their way to their sums."""
    update: int
    """The gradients' copies in the optimizer's step."""

    @property
    def total(self) -> int:
        """At the highest of these moments: the loss, a block's backward pass, a reduction, the optimizer's step."""
        kept = self.parameters + self.gradients + self.master + self.optimizer + self.buffers
        return kept + max(self.activations + max(self.logits, self.recomputed, self.reduction), self.update)

    @property
    def gib(self) -> float:
        return self.total / 2**30

    def parts_gib(self) -> dict[str, float]:
        """The parts by name; those of different moments do not add up to the total."""
        return {field.name: getattr(self, field.name) / 2**30 for field in fields(self)}


def estimate_memory(config: RunConfig) -> Memory:
    """What training needs on each rank.

    It counts the model as it is written. Compiled graphs keep less (norms and SwiGLU are computed again, and logits
    need no fp32 copy), so that with `cluster.compile` the estimate is too high. It is too low for fp32 on GPUs, where
    attention keeps its scores.
    """
    model, cluster = config.model, config.cluster
    on_gpu = cluster.gpu is not None or visible_gpus() > 0
    bf16 = cluster.precision is Precision.bf16 or (cluster.precision is Precision.auto and on_gpu)
    item = 2 if bf16 else 4
    tokens = cluster.micro_batch * model.seq_len
    block, norm = _block_bytes(model, item, on_gpu), _norm_bytes(model, item, on_gpu)
    kept_of_block = item * model.hidden_size if cluster.activation_checkpointing else block
    return Memory(
        **_state_bytes(model, cluster, item),
        activations=tokens * (model.num_layers * kept_of_block + norm + 16),  # 16: the token and its target, int64
        logits=tokens * model.vocab_size * _LOGIT_BYTES,
        recomputed=tokens * block if cluster.activation_checkpointing else 0,
    )


def _state_bytes(model: ModelConfig, cluster: ClusterConfig, item: int) -> dict[str, int]:
    """What does not grow with the batch, by ZeRO stage."""
    local = processes_per_node(cluster)
    ranks, count = cluster.nodes * local, num_parameters(model)
    in_bucket = min(BUCKET_ELEMENTS, count)
    share = -(-count // ranks)
    largest = model.hidden_size * max(model.vocab_size, 2 * model.intermediate_size)
    bytes_of = {"parameters": item * count, "gradients": 4 * share, "master": 4 * share, "optimizer": 8 * share}
    if cluster.zero_stage == 1 and item == 2:  # BF16_Optimizer: each gradient is added to an fp32 sum on every rank
        return bytes_of | {"gradients": 4 * count, "buffers": 0, "reduction": (2 + 4) * largest, "update": 0}
    if cluster.zero_stage == 1:
        buffers = 4 * BUCKET_ELEMENTS
        return bytes_of | {"gradients": 4 * count, "buffers": buffers, "reduction": 4 * largest, "update": 4 * share}
    if cluster.zero_stage == 2:  # every micro-batch fills a bucket anew and reduces it in fp32
        reduction = item * BUCKET_ELEMENTS + (item + 4 if item == 2 else 4) * in_bucket
        embedding = item * model.vocab_size * model.hidden_size  # its gradient stays until the next one comes
        return bytes_of | {"buffers": embedding, "reduction": reduction, "update": 4 * share}
    gathered = min(count, _LIVE_ELEMENTS) if ranks > 1 else 0
    second_copy = -(-count // local) if cluster.shard_within_node and local < ranks else 0
    return bytes_of | {
        "parameters": item * (share + gathered + second_copy),
        "buffers": 4 * BUCKET_ELEMENTS,
        "reduction": 4 * in_bucket + item * largest,
        "update": 4 * share,
    }


def _block_bytes(model: ModelConfig, item: int, on_gpu: bool) -> int:
    """What a block keeps of each token: inputs of its norms and matrices, queries, keys, values, SwiGLU's factors."""
    heads, kv_heads, size = model.num_heads, model.num_kv_heads, model.head_size
    attention = (heads + 2 * kv_heads) * size + (heads + kv_heads) * size + heads * size  # qkv, rotated, mixed
    feed_forward = 4 * model.intermediate_size  # gate and up, silu(gate), their product
    log_sums = 4 * heads
    return 2 * _norm_bytes(model, item, on_gpu) + item * (attention + feed_forward) + log_sums


def _norm_bytes(model: ModelConfig, item: int, on_gpu: bool) -> int:
    """Input, output and the root of each row; without a fused kernel the input and its normalised form in fp32."""
    return 4 + model.hidden_size * (2 * item if on_gpu else 4 + 4 + item)
