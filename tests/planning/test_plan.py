"""Stages of a path joined into one life."""

import numpy as np
import pytest

from tinyllama.data.inventory import take_inventory
from tinyllama.planning.corpora import Corpus, Inventory
from tinyllama.planning.plan import make_plan
from tinyllama.planning.tree import Job, grow
from tinyllama.planning.views import carry

SIZES = {"slimpajama": (64,) * 40, "starcoder": (64,) * 9, "proof_pile_2": (64,) * 7, "skypile": (50,) * 21}
PREPARED = Inventory({name: Corpus(name, f"of {name}", sizes) for name, sizes in SIZES.items()}, "of the tokenizer")


@pytest.fixture
def plan(compose):
    """plan("+variant=chinese", "stage=continual") at demo scale over small corpora that are prepared."""
    return lambda *overrides: make_plan(compose("+scale=demo", *overrides), PREPARED)


def test_a_child_goes_on_where_its_parent_stopped(plan):
    cooldown = plan("+variant=chinese", "stage=cooldown")
    for parent, child in zip(cooldown.path, cooldown.path[1:], strict=False):
        assert child.start_tokens == parent.end_tokens
        assert child.start_draws == parent.order.draws_before(parent.samples)
        assert sum(child.start_draws.values()) * child.seq_len == child.start_tokens


@pytest.mark.parametrize("seq_len", [32, 256])
def test_a_child_of_another_context_starts_at_its_parents_end_in_its_own_samples(plan, seq_len):
    child = plan("+variant=chinese", "stage=continual", f"stage.seq_len={seq_len}")
    parent, plain = child.parent, plan("+variant=chinese", "stage=continual")
    assert (parent.digest, parent.seq_len) == (plain.parent.digest, 128)
    assert child.digest != plain.digest
    assert child.start_tokens == parent.end_tokens
    assert child.batch_tokens == plain.batch_tokens and child.tokens == plain.tokens
    drawn = parent.order.draws_before(parent.samples)
    shards = PREPARED.corpora["slimpajama"].shard_samples
    assert child.start_draws == carry(drawn, {"slimpajama": shards}, 1, parent.view, child.view)
    assert child.start_draws["slimpajama"] * seq_len == pytest.approx(parent.end_tokens, abs=seq_len)
    assert child.order.samples([0]).draw == child.start_draws["slimpajama"]


def test_a_fork_of_another_context_starts_where_its_parent_was(plan):
    fork = plan("stage=continual", "stage.fork_at_tokens=100_000", "stage.seq_len=64")
    batch = fork.parent.batch_tokens
    assert fork.start_tokens == -(-100_000 // batch) * batch
    assert sum(fork.start_draws.values()) * 64 == fork.start_tokens


def test_the_ramp_of_a_stage_of_another_context_is_as_long_in_tokens(plan):
    plain, short = (plan("+variant=chinese", "stage=continual", *more) for more in ([], ["stage.seq_len=32"]))
    tokens = plain.ramp_tokens // 2
    assert short.weights_at(tokens // 32) == pytest.approx(plain.weights_at(tokens // 128), abs=1e-2)


def test_a_grandchild_back_at_the_prepared_length_repeats_nothing(plan):
    cooldown = plan("+variant=chinese", "stage=cooldown", "++stages.continual.seq_len=32")
    seen = set()
    for stage in cooldown.path:
        found = stage.order.samples(np.arange(stage.samples))
        mine = found.sample_id[found.corpus == stage.order.names.index("skypile")] if "skypile" in stage.corpora else []
        pieces = 4 // stage.view.pieces
        here = {piece for each in mine for piece in range(each * pieces, (each + 1) * pieces)}
        assert len(here) == len(mine) * pieces and not here & seen
        seen |= here
    assert 0 < len(seen) < 4 * sum(SIZES["skypile"])


def test_variants_share_the_basic_stage_and_differ_from_there(plan):
    plans = [plan(f"+variant={name}", "stage=continual") for name in ("standard", "math_code", "chinese")]
    assert len({each.parent.digest for each in plans}) == 1
    assert len({each.digest for each in plans}) == 3


def test_the_ramp_starts_from_the_parents_mixture(plan):
    continual = plan("+variant=math_code", "stage=continual")
    ramp = continual.ramp_tokens // continual.seq_len
    assert continual.weights_at(0)["slimpajama"] == 1
    assert continual.weights_at(ramp // 2) == pytest.approx(
        {"slimpajama": 0.875, "starcoder": 0.075, "proof_pile_2": 0.05}, abs=1e-2
    )
    assert continual.weights_at(ramp) == continual.end_weights
    assert plan("+variant=math_code", "stage=cooldown").weights_at(0) == continual.end_weights


def test_tokens_that_are_not_whole_batches_are_rounded_to_the_nearest(plan):
    assert plan("stage.tokens=100_000", "stage.batch_tokens=4096").steps == 24
    assert plan("stage.tokens=101_000", "stage.batch_tokens=4096").steps == 25


def test_a_fork_goes_on_from_the_step_that_reaches_it(plan):
    whole = plan("stage=continual")
    fork = plan("stage=continual", "stage.fork_at_tokens=100_000")
    batch = fork.parent.batch_tokens
    assert fork.start_tokens == -(-100_000 // batch) * batch < whole.start_tokens
    assert fork.start_draws == fork.parent.order.draws_before(fork.start_tokens // fork.seq_len)
    assert fork.digest != whole.digest


def test_a_fork_within_the_ramp_starts_from_the_mixture_found_there(plan, compose):
    overrides = ("+variant=chinese", "stage=cooldown", "stage.ramp_tokens=8K")
    continual = plan(*overrides).parent
    middle = continual.start_tokens + continual.ramp_tokens // 2
    fork = plan(*overrides, f"stage.fork_at_tokens={middle}")
    assert 0.5 < fork.start_weights["slimpajama"] < 1


def test_a_plan_is_provisional_until_its_path_is_prepared(plan, compose, tmp_path):
    assert not plan("+variant=chinese", "stage=cooldown").provisional
    path = compose("+scale=demo", "+variant=chinese", "stage=cooldown", f"paths.data={tmp_path}")
    assert make_plan(path, take_inventory(path)).provisional


def test_the_tree_holds_each_meaning_once_and_parents_first(compose):
    jobs = []
    for stage in ("cooldown", "basic", "continual"):
        for variant in ("chinese", "standard", "math_code"):
            overrides = ("+scale=demo", f"+variant={variant}", f"stage={stage}")
            path = compose(*overrides)
            jobs.append(Job(overrides, path, make_plan(path, PREPARED)))
    nodes = grow(jobs)
    assert len(nodes) == 7
    seen = set()
    for node in nodes:
        assert node.plan.parent is None or node.plan.parent.digest in seen
        seen.add(node.plan.digest)
    assert set(nodes[0].variants) == {"standard", "math_code", "chinese"}
    assert all(node.overrides is not None for node in nodes)


def test_an_ancestor_that_nobody_asked_for_stands_in_the_tree_without_overrides(compose):
    path = compose("+scale=demo", "stage=continual")
    basic, continual = grow([Job(("stage=continual",), path, make_plan(path, PREPARED))])
    assert basic.overrides is None and basic.plan is continual.plan.parent
