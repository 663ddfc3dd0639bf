"""What changes a digest, and what never does."""

from enum import Enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllama.planning.corpora import Corpus, Inventory
from tinyllama.planning.identity import canonical, digest, flatten
from tinyllama.planning.plan import make_plan

NAMES = ("slimpajama", "starcoder", "proof_pile_2", "skypile")
PREPARED = Inventory({name: Corpus(name, f"of {name}", (64,) * 40) for name in NAMES}, "of the tokenizer")

PLACEMENT = [
    "paths.runs=elsewhere", "paths.data=elsewhere", "cluster.processes=2", "cluster.micro_batch=2",
    "cluster.zero_stage=3", "cluster.attention=flash_attn", "cluster.compile=true", "cluster.workers=3",
    "cluster.precision=bf16", "tracking=none", "tracking.uri=http://127.0.0.1:1", "checkpoint.every_tokens=1M",
    "validation.every_tokens=1M", "trace=true", "format=json", "log_every_steps=9", "family=other",
    "model.name=renamed", "tokenizer.name=renamed", "data_mix.weights={slimpajama: 5, skypile: 5}",
    "optimizer.learning_rate=0.0030",
]  # fmt: skip
MEANING = [
    "seed=1", "model.num_layers=2", "model.rope_theta=1e6", "tokenizer.add_bos=true", "data_mix.weights.skypile=51",
    "stage.tokens=165K", "stage.batch_tokens=8192", "stage.ramp_tokens=16K", "schedule.horizon_tokens=2M",
    "schedule.warmup_tokens=9K", "schedule.min_learning_rate=1e-5", "optimizer.learning_rate=0.0031",
    "optimizer.betas=[0.9,0.99]", "optimizer.weight_decay=0", "optimizer.max_grad_norm=2", "order.window=8",
    "order.lanes=2", "stage.fork_at_tokens=100K",
]  # fmt: skip


@pytest.fixture
def digest_of(compose):
    def find(*overrides, inventory=PREPARED):
        return make_plan(compose("+scale=demo", "+variant=chinese", "stage=continual", *overrides), inventory).digest

    return find


@pytest.mark.parametrize("override", PLACEMENT)
def test_where_a_run_stands_and_how_a_value_is_spelled_keep_the_digest(digest_of, override):
    assert digest_of(override, "optimizer.learning_rate=3e-3") == digest_of("optimizer.learning_rate=3e-3")


@pytest.mark.parametrize("override", MEANING)
def test_what_a_run_computes_changes_the_digest(digest_of, override):
    assert digest_of(override) != digest_of()


def test_the_content_of_a_corpus_changes_the_digest_of_those_who_read_it(digest_of):
    def with_other(name):
        return Inventory({**PREPARED.corpora, name: Corpus(name, "other", (64,) * 40)}, PREPARED.tokenizer_digest)

    assert digest_of(inventory=with_other("skypile")) != digest_of()
    assert digest_of(inventory=with_other("slimpajama")) != digest_of()
    assert digest_of(inventory=with_other("starcoder")) == digest_of()


@given(st.dictionaries(st.text(max_size=3), st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))))
def test_the_canonical_form_does_not_depend_on_the_order_of_keys(value):
    backwards = dict(reversed(value.items()))
    assert canonical(value) == canonical(backwards)


def test_numbers_are_their_value_and_not_their_spelling():
    assert canonical({"a": 1}) == canonical({"a": 1.0})
    assert canonical(4e-4) == canonical(0.0004)
    assert canonical(0.1 + 0.2) != canonical(0.3)


class _Choice(Enum):
    one = "one"


def test_enums_are_their_value_and_what_is_not_given_does_not_count():
    assert canonical({"choice": _Choice.one, "nothing": None}) == canonical({"choice": "one"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: 2}, {1, 2}, object(), b"bytes"])
def test_a_value_without_a_canonical_form_is_refused(value):
    with pytest.raises(TypeError, match="canonical form"):
        canonical({"value": value})


def test_the_digest_of_a_value_never_changes():
    assert digest({"b": [1, 2.5, None, True], "a": "é"}) == digest({"a": "é", "b": (1.0, 2.5, None, True)})
    assert digest({"a": 1}).startswith("015abd7f5cc57a2d")


def test_flattening_names_every_leaf():
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": [3]}) == {"a.b": 1, "a.c.d": 2, "e": [3]}
