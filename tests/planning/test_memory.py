"""Figures of the real model that are known otherwise; tests/engine/test_memory.py counts tensors of small ones."""

from dataclasses import replace

import pytest

from tinyllama.planning.flops import num_parameters
from tinyllama.planning.memory import Memory, chosen_loss, estimate_memory


@pytest.fixture
def estimate(compose):
    """estimate(zero_stage=3) reckons with the original's cluster, changed by these settings."""
    config = compose("stage=basic", "cluster=a100_40g_x4")[-1]
    return lambda **settings: estimate_memory(replace(config, cluster=replace(config.cluster, **settings)))


@pytest.fixture
def count(compose):
    return num_parameters(compose("stage=basic")[-1].model)


def states(memory: Memory) -> int:
    return memory.parameters + memory.gradients + memory.master + memory.optimizer


def test_stage_1_keeps_6_bytes_a_parameter_and_12_shared_by_all_ranks(estimate, count):
    for nodes in (1, 16):
        assert states(estimate(nodes=nodes)) == pytest.approx((6 + 12 / (4 * nodes)) * count, rel=1e-6)


def test_stage_3_shares_all_but_the_weights_that_are_gathered(estimate, count):
    assert states(estimate(zero_stage=3)) == pytest.approx(18 / 64 * count + 2e9, rel=1e-6)
    within_node = states(estimate(zero_stage=3, shard_within_node=True))
    assert within_node - states(estimate(zero_stage=3)) == pytest.approx(2 / 4 * count, rel=1e-6)
    one_node = [states(estimate(nodes=1, zero_stage=3, shard_within_node=choice)) for choice in (True, False)]
    assert one_node[0] == one_node[1]


def test_a_token_of_the_real_model_leaves_about_1_7_megabytes(estimate):
    tokens = 7 * 2048
    assert estimate(micro_batch=7).activations / tokens == pytest.approx(1.66e6, rel=0.01)
    # Of each block its input alone, and the input and output of the last norm.
    assert estimate(activation_checkpointing=True).activations / tokens == pytest.approx(2 * 2048 * 24, rel=0.01)


def test_the_original_cluster_holds_micro_batches_of_10_and_not_of_11(estimate):
    assert estimate(micro_batch=10).gib < 39.4 < estimate(micro_batch=11).gib
    assert estimate(micro_batch=16, activation_checkpointing=True).gib < 39.4


def test_checkpointing_trades_activations_for_one_block_at_a_time(estimate):
    plain, checkpointed = estimate(), estimate(activation_checkpointing=True)
    assert checkpointed.total < plain.total
    assert plain.activations == pytest.approx(22 * checkpointed.recomputed, rel=0.01)
    assert states(plain) == states(checkpointed)


def test_selective_checkpointing_keeps_more_than_inputs_and_less_than_all(estimate):
    plain, inputs, selective = (estimate(activation_checkpointing=how) for how in (False, True, "selective"))
    assert inputs.total < selective.total < plain.total
    # What norms, rotary positions and SwiGLU give makes up two fifths of a block.
    assert selective.activations == pytest.approx(0.6 * plain.activations, rel=0.1)


def test_the_loss_is_computed_in_chunks_where_memory_is_short_and_they_bring_it_into_bounds(compose):
    config = compose("stage=basic", "cluster=a100_40g_x4")[-1]

    def needs(**settings):
        return estimate_memory(replace(config, cluster=replace(config.cluster, **settings))).gib

    def chosen(**settings):
        return chosen_loss(replace(config, cluster=replace(config.cluster, **settings)))

    whole, chunked = (needs(loss=loss, micro_batch=9) for loss in ("whole", "chunked"))
    assert chunked < whole
    between = (chunked + whole) / 2
    rooms = {None: "whole", whole: "whole", between: "chunked", chunked: "chunked", chunked / 2: "whole"}
    assert {room: chosen(micro_batch=9, gpu_memory_gib=room) for room in rooms} == rooms
    assert needs(micro_batch=9, gpu_memory_gib=between) == chunked
    assert chosen(micro_batch=9, gpu_memory_gib=between, loss="whole") == "whole"


def test_logits_take_their_own_size_and_once_compiled_twice_that(estimate, count):
    tokens = 7 * 2048
    logits = tokens * 32000 * 2
    head_and_hidden = 2 * 2048 * (32000 + tokens)
    common = {"micro_batch": 7, "loss": "whole"}
    assert estimate(**common, compile=True).logits == estimate(**common).logits == 2 * logits
    assert estimate(**common, compile=False).logits == logits + max(head_and_hidden, 8 * 1048 * 32000)


def test_cpus_compute_in_fp32_unless_told_otherwise(estimate, monkeypatch, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert estimate(gpu=None).parameters == 4 * count
    assert estimate().parameters == 2 * count
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert estimate(gpu=None).parameters == 2 * count


def test_the_total_is_the_higher_of_the_loss_and_the_update():
    common = {"parameters": 1, "gradients": 2, "master": 4, "optimizer": 8, "buffers": 16, "recomputed": 0}
    assert Memory(**common, activations=100, logits=50, reduction=40, update=7).total == 31 + 150
    assert Memory(**common, activations=100, logits=50, reduction=60, update=7).total == 31 + 160
    assert Memory(**common, activations=1, logits=5, reduction=0, update=70).total == 31 + 70
