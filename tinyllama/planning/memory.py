"""Bytes that a rank needs at the peak of an optimizer step, by arithmetic; nothing is allocated.

The terms are what our model and DeepSpeed 0.19.8 keep; tests/engine/test_memory.py counts the real tensors.
"""

from dataclasses import dataclass, fields, replace

from tinyllama.config.checks import processes_per_node
from tinyllama.config.schema import ClusterConfig, ModelConfig, Precision, RunConfig
from tinyllama.planning.flops import num_parameters
from tinyllama.world import visible_gpus

BUCKET_ELEMENTS = 50_000_000
"""Gradients and weights travel in pieces of this many elements; engine/deepspeed_config.py says so to DeepSpeed."""

LIVE_ELEMENTS = 1_000_000_000
"""Stage 3 keeps up to this many gathered parameters between the forward and the backward pass."""
_PIECE_ELEMENTS = {True: 2**25, False: 2**22}
"""Logits in fp32 at one time, on GPUs and on CPUs: model/loss.py's PIECE_ELEMENTS."""


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
    """And what the loss makes of them."""
    recomputed: int
    """What activation checkpointing does not keep of a block and computes again in its backward pass."""
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

    It counts the model as it is written. Compiled graphs keep less of a block (norms and SwiGLU are computed again), so
    that with `cluster.compile` the estimate is too high. It is too low for fp32 on GPUs, where attention keeps its
    scores. With `cluster.precision=fp8` the float8 copies of a matrix's operands live as long as its multiplication,
    and are not counted.
    """
    model, cluster = config.model, config.cluster
    on_gpu, item = _on_gpu(cluster), bytes_per_weight(cluster)
    tokens = cluster.micro_batch * model.seq_len
    block, norm = _block_bytes(model, item, on_gpu), _norm_bytes(model, item)
    kept = _kept_bytes(model, cluster, item, block)
    return Memory(
        **_state_bytes(model, cluster, item),
        activations=tokens * (model.num_layers * kept + norm + 16),  # 16: the token and its target, int64
        logits=_logit_bytes(model, cluster, chosen_loss(config)),
        recomputed=tokens * _recomputed_bytes(cluster, block, kept),
    )


def chosen_loss(config: RunConfig) -> str:
    """What cluster.loss=auto means: whole, unless that does not fit cluster.gpu_memory_gib and chunked does."""
    cluster = config.cluster
    if cluster.loss != "auto":
        return cluster.loss
    room = cluster.gpu_memory_gib

    def fits(loss: str) -> bool:
        return room is None or estimate_memory(replace(config, cluster=replace(cluster, loss=loss))).gib <= room

    return "chunked" if not fits("whole") and fits("chunked") else "whole"


def bytes_per_weight(cluster: ClusterConfig) -> int:
    """Of each weight, as the forward pass reads it."""
    in_fp32 = cluster.precision is Precision.fp32 or (cluster.precision is Precision.auto and not _on_gpu(cluster))
    return 4 if in_fp32 else 2


def _on_gpu(cluster: ClusterConfig) -> bool:
    return cluster.gpu is not None or visible_gpus() > 0


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
    gathered = min(count, LIVE_ELEMENTS) if ranks > 1 else 0
    second_copy = -(-count // local) if cluster.shard_within_node and local < ranks else 0
    return bytes_of | {
        "parameters": item * (share + gathered + second_copy),
        "buffers": 4 * BUCKET_ELEMENTS,
        "reduction": 4 * in_bucket + item * largest,
        "update": 4 * share,
    }


def _logit_bytes(model: ModelConfig, cluster: ClusterConfig, loss: str) -> int:
    """At the peak of the loss, which is in its backward pass."""
    on_gpu, item = _on_gpu(cluster), bytes_per_weight(cluster)
    vocab = model.vocab_size
    tokens: int = cluster.micro_batch * model.seq_len
    logits, head, hidden = item * tokens * vocab, item * vocab * model.hidden_size, item * tokens * model.hidden_size
    if loss == "whole" and (on_gpu if cluster.compile is None else cluster.compile):
        return 2 * logits  # and their gradient
    piece = min(tokens, max(1, _PIECE_ELEMENTS[on_gpu] // vocab)) * vocab
    in_fp32 = (4 if item == 4 else 8) * piece
    if loss == "whole":  # the gradient takes the logits' place, piece by piece; then come head's and hidden states'
        return logits + max(in_fp32, head + hidden)
    # The head's gradient is summed in fp32 over pieces, each of which adds one in the model's precision.
    return 2 * hidden + 4 * head // item + item * piece + max(in_fp32, head)


def _kept_bytes(model: ModelConfig, cluster: ClusterConfig, item: int, block: int) -> int:
    """Of each token, what a block keeps until its backward pass; `block` is all that this reads."""
    if not cluster.activation_checkpointing:
        return block
    if cluster.activation_checkpointing != "selective":
        return item * model.hidden_size
    attention = (2 * model.num_heads + 2 * model.num_kv_heads) * model.head_size  # qkv, mixed
    matrices = 2 * model.hidden_size + 2 * model.intermediate_size  # out, down, gate and up
    return item * (model.hidden_size + attention + matrices) + 4 * model.num_heads


def _recomputed_bytes(cluster: ClusterConfig, block: int, kept: int) -> int:
    """Of each token, while a block's backward pass runs."""
    if not cluster.activation_checkpointing:
        return 0
    return block - kept if cluster.activation_checkpointing == "selective" else block


def _block_bytes(model: ModelConfig, item: int, on_gpu: bool) -> int:
    """What a block keeps of each token: inputs of its norms and matrices, queries, keys, values, SwiGLU's factors."""
    heads, kv_heads, size = model.num_heads, model.num_kv_heads, model.head_size
    attention = (heads + 2 * kv_heads) * size + (heads + kv_heads) * size + heads * size  # qkv, rotated, mixed
    # Gate and up, and their product; on GPUs the formula is written out, which keeps silu(gate) as well.
    feed_forward = (4 if on_gpu else 3) * model.intermediate_size
    log_sums = 4 * heads
    return 2 * _norm_bytes(model, item) + item * (attention + feed_forward) + log_sums


def _norm_bytes(model: ModelConfig, item: int) -> int:
    """Input, output and the root of each row."""
    return 4 + model.hidden_size * 2 * item
