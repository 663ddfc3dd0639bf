"""Counts of corpora against the integral of their weights, at every prefix."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllama.planning.mixture import Mixture

RAMP = 6_000_000_000 // 2048
SHIPPED = {
    "standard": [(0, {"slimpajama": 100})],
    "math_code": [(0, {"slimpajama": 100}), (RAMP, {"slimpajama": 75, "starcoder": 15, "proofpile": 10})],
    "chinese": [(0, {"slimpajama": 100}), (RAMP, {"slimpajama": 50, "skypile": 50})],
}


def mixture_of(knots):
    return Mixture(sorted({name for _, weights in knots for name in weights}), knots)


@st.composite
def mixtures(draw):
    names = "abcdefg"[: draw(st.integers(1, 7))]
    weights = st.one_of(st.just(0.0), st.sampled_from([1.0, 2.0, 50.0]), st.floats(0.001, 100))
    knots = st.fixed_dictionaries(dict.fromkeys(names, weights)).filter(lambda each: sum(each.values()) > 0)
    widths = draw(st.lists(st.integers(1, 700), max_size=3))
    return Mixture(list(names), [(position, draw(knots)) for position in np.cumsum([0, *widths]).tolist()])


def deviation(mixture, start=0, stop=4000):
    positions = np.arange(start, stop)
    return np.abs(mixture.counts(positions) - mixture.integral(positions)).max()


@given(mixtures())
@settings(max_examples=150)
def test_each_corpus_stays_within_the_bound_of_its_share_at_every_prefix(mixture):
    positions = np.arange(2500)
    counts = mixture.counts(positions)
    assert (counts.sum(axis=-1) == positions).all()
    assert np.abs(counts - mixture.integral(positions)).max() <= mixture.deviation_bound + 1e-9


@given(mixtures(), st.integers(0, 10**9))
@settings(max_examples=100)
def test_each_position_draws_the_next_sample_of_one_corpus(mixture, start):
    positions = np.arange(start, start + 1500)
    counts = mixture.counts(np.append(positions, start + 1500))
    corpus, ordinal = mixture.draws(positions)
    assert np.array_equal(np.diff(counts, axis=0), np.eye(len(mixture.names), dtype=np.int64)[corpus])
    assert np.array_equal(ordinal, counts[np.arange(1500), corpus])


@given(mixtures(), st.lists(st.integers(0, 10**9), min_size=1, max_size=30))
def test_a_position_alone_gives_what_it_gives_among_others(mixture, positions):
    together = np.stack(mixture.draws(positions))
    alone = [np.stack(mixture.draws(position)) for position in positions]
    assert np.array_equal(together, np.stack(alone, axis=-1))


@pytest.mark.parametrize("variant", SHIPPED)
def test_the_shipped_mixes_stay_within_one_sample(variant):
    mixture = mixture_of(SHIPPED[variant])
    assert mixture.deviation_bound < 1
    for start in (0, RAMP - 50_000, 10**9):
        assert deviation(mixture, start, start + 100_000) <= mixture.deviation_bound


def test_the_integral_of_a_ramp_is_a_parabola_and_then_a_line():
    mixture = mixture_of([(0, {"a": 1}), (100, {"a": 3, "b": 1})])
    assert np.allclose(mixture.integral([0, 50, 100, 300])[:, mixture.names.index("b")], [0, 3.125, 12.5, 62.5])


def test_only_proportions_count_and_the_order_of_names_does_not():
    positions = np.arange(5000)
    one = Mixture(["a", "b", "c"], [(0, {"a": 1}), (900, {"a": 2, "b": 1, "c": 1})])
    other = Mixture(["c", "a", "b"], [(0, {"a": 7}), (900, {"c": 25, "a": 50, "b": 25})])
    names = [np.array(each.names)[each.draws(positions)[0]] for each in (one, other)]
    assert np.array_equal(*names)


def test_a_corpus_whose_weight_has_ended_is_drawn_no_more_and_one_without_weight_never():
    mixture = mixture_of([(0, {"a": 3, "b": 1, "never": 0}), (1000, {"c": 1, "d": 1})])
    counts = dict(zip(mixture.names, mixture.counts([1002, 10**9]).T.tolist(), strict=True))
    assert counts["a"][0] == counts["a"][1] == pytest.approx(375, abs=1)
    assert counts["b"][0] == counts["b"][1] == pytest.approx(125, abs=1)
    assert counts["never"] == [0, 0]


def test_a_set_of_corpora_that_ends_divides_its_last_draw_as_those_before():
    mixture = mixture_of([(0, {"slim": 2, "star": 3, "proof": 2}), (1167, {"sky": 1})])
    assert deviation(mixture) <= mixture.deviation_bound


def test_a_tie_at_every_draw_gives_each_position_one_corpus():
    mixture = mixture_of([(0, {"a": 1}), (507, {"c": 1}), (4322, {"b": 1})])
    steps = np.diff(mixture.counts(np.arange(8000)), axis=0)
    assert set(steps.ravel().tolist()) == {0, 1}


def test_many_corpora_of_one_weight_stay_within_one_sample():
    assert mixture_of([(0, dict.fromkeys("abcdefgh", 1))]).deviation_bound == pytest.approx(7 / 8, abs=1e-3)


def test_rounds_keep_the_shares():
    mixture = mixture_of(SHIPPED["math_code"])
    assert np.allclose(mixture.in_rounds(8).integral(RAMP / 4) * 8, mixture.integral(RAMP * 2))
