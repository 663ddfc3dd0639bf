"""The one form that a value has in a digest, and how two meanings differ."""

import json
from enum import Enum, StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllama.config import schema
from tinyllama.planning.identity import Difference, canonical, differences, digest, flatten

SOUND_TEXT = st.text(st.characters(exclude_categories=("Cn", "Cs")), max_size=3)
NUMBERS = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.sampled_from("abc")),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner)),
    max_leaves=8,
)
MEANINGS = st.dictionaries(st.sampled_from("abc"), VALUES)


@given(st.dictionaries(st.text("abcdefgh", max_size=3), NUMBERS))
def test_the_canonical_form_does_not_depend_on_the_order_of_keys(value):
    backwards = dict(reversed(value.items()))
    assert canonical(value) == canonical(backwards)


@given(VALUES)
def test_the_canonical_form_survives_being_written_as_json_and_read_back(value):
    assert canonical(json.loads(json.dumps(value))) == canonical(value)
    assert canonical(json.loads(canonical(value))) == canonical(value)


@given(NUMBERS, NUMBERS)
def test_numbers_are_one_exactly_where_their_values_are(one, other):
    assert (canonical(one) == canonical(other)) == (one == other)


@pytest.mark.parametrize(
    "value, text",
    [
        (1.0, "1"),
        (4e-4, "0.0004"),
        (1e-5, "1e-05"),
        (0.1 + 0.2, "0.30000000000000004"),
        (-0.0, "0"),
        (1e22, "1" + "0" * 22),
        (2**53 + 1, "9007199254740993"),
        (float(2**53), "9007199254740992"),
        (2.0**100, str(2**100)),
        (10**400, "1" + "0" * 400),
        (5e-324, "5e-324"),
        (True, "true"),
        ("é", '"\\u00e9"'),
        ("e\u0301", '"\\u00e9"'),
        ("中", '"\\u4e2d"'),
        ({"e\u0301": (1, None)}, '{"\\u00e9":[1,null]}'),
    ],
)
def test_each_value_has_the_one_form_that_it_has_everywhere(value, text):
    assert canonical(value) == text


def test_yes_is_not_one():
    assert canonical(True) != canonical(1)


class _Choice(Enum):
    one = "one"


class _Text(StrEnum):
    one = "one"


def test_enums_are_their_value_and_what_is_not_given_does_not_count():
    assert canonical({"choice": _Choice.one, "nothing": None}) == canonical({"choice": "one"})
    assert canonical(_Text.one) == canonical({_Text.one: 1})[1:6] == '"one"'


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), {1: 2}, {1, 2}, object(), b"bytes", 1j, range(3), "\ud800", {"\ud800": 1}, "\u0378",
     {"é": 1, "e\u0301": 2}, schema.OrderConfig()],
    ids=lambda value: "an object" if type(value) is object else repr(value),
)  # fmt: skip
def test_a_value_without_a_canonical_form_is_refused(value):
    with pytest.raises(TypeError, match="canonical form"):
        canonical({"value": value})


def test_the_digest_of_a_value_never_changes():
    assert digest({"b": [1, 2.5, None, True], "a": "é"}) == digest({"a": "é", "b": (1.0, 2.5, None, True)})
    assert digest({"a": 1}).startswith("015abd7f5cc57a2d")


# ---------------------------------------------------------------- differences


def repr_of(difference: Difference) -> Difference:
    """With values that a set can hold."""
    return Difference(difference.field, repr(difference.old), repr(difference.new))


@given(MEANINGS, MEANINGS)
def test_meanings_differ_exactly_where_their_digests_do(old, new):
    found = differences(old, new)
    assert bool(found) == (digest(old) != digest(new))
    assert len({each.field for each in found}) == len(found)
    assert {(each.field, each.new, each.old) for each in map(repr_of, differences(new, old))} == {
        (each.field, each.old, each.new) for each in map(repr_of, found)
    }


def test_differences_name_each_field_with_both_values_in_the_order_of_the_meaning():
    old = {"model": {"layers": 22, "theta": 1e4}, "mix": {"a": 1.0}, "betas": [0.9, 0.95], "seed": 1, "parent": "x"}
    new = {"model": {"layers": 24, "theta": 10_000}, "mix": {"b": 0.5, "a": 0.5}, "betas": [0.9, 0.99], "seed": True}
    assert differences(old, new) == [
        Difference("model.layers", 22, 24),
        Difference("mix.b", None, 0.5),
        Difference("mix.a", 1, 0.5),
        Difference("betas", [0.9, 0.95], [0.9, 0.99]),
        Difference("seed", 1, True),
        Difference("parent", "x", None),
    ]


def test_a_part_that_is_given_on_one_side_alone_is_shown_field_by_field():
    assert differences({}, {"mix": {"a": 1}}) == [Difference("mix.a", None, 1)]
    assert differences({"mix": {}}, {}) == [Difference("mix", {}, None)]
    assert differences({"mix": 1}, {"mix": {"a": 1}}) == [Difference("mix", 1, {"a": 1})]


@given(MEANINGS)
def test_a_meaning_does_not_differ_from_what_was_written_of_it(value):
    assert differences(json.loads(json.dumps(value)), value) == []


def test_flattening_names_every_leaf():
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": [3]}) == {"a.b": 1, "a.c.d": 2, "e": [3]}
