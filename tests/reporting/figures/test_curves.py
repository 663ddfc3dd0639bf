"""The picture of learning rate and batch shows the plan's own numbers."""

from dataclasses import replace

import numpy as np
import pytest

from tests.reporting.figures.conftest import FAMILIES, assert_readable, drawn_texts
from tinyllama.reporting.figures.curves import curves_figure, format_rate
from tinyllama.reporting.figures.life import Life, lives

pytestmark = pytest.mark.xdist_group("figures")  # composing the families is most of it


DRAWN: dict[tuple[str, ...], list] = {}
"""What each_life gave, by the digests of the family: tests only look at it."""


@pytest.fixture
def each_life(nodes):
    """Every life of a family with the axes of its own picture."""
    family = tuple(node.plan.digest for node in nodes)
    if family not in DRAWN:
        DRAWN[family] = [(life, *curves_figure([life]).axes) for life in lives(nodes)]
    return DRAWN[family]


def curve(axes):
    """What was drawn last: the borders come before."""
    return np.asarray(axes.lines[-1].get_xdata()), np.asarray(axes.lines[-1].get_ydata())


def test_the_learning_rate_is_the_schedules_at_every_place(each_life):
    for life, axes, _ in each_life:
        places, rates = curve(axes)
        for tokens, rate in zip(places.tolist(), rates.tolist(), strict=True):
            on = [each.plan.schedule for each in life.stretches if each.start_tokens <= tokens <= each.end_tokens]
            assert rate in [schedule(tokens) for schedule in on]


def test_between_the_places_the_curve_is_dense_enough_to_be_true(each_life):
    for life, axes, _ in each_life:
        places, rates = curve(axes)
        for stretch in life.stretches:
            schedule = stretch.plan.schedule
            tokens = np.linspace(stretch.start_tokens, stretch.end_tokens, 1009).astype(int)[1:-1]
            due = [schedule(each) for each in tokens.tolist()]
            assert np.abs(np.interp(tokens, places, rates) - due).max() <= schedule.peak * 1e-4


def test_borders_warm_up_and_horizon_are_met_exactly(each_life):
    for life, axes, _ in each_life:
        places, _ = curve(axes)
        for stretch in life.stretches:
            bends = {stretch.plan.schedule.warmup_tokens, stretch.plan.schedule.horizon_tokens}
            inside = {tokens for tokens in bends if stretch.start_tokens <= tokens <= stretch.end_tokens}
            assert {stretch.start_tokens, stretch.end_tokens} | inside <= set(places.tolist())


def test_the_batch_is_the_plans_from_border_to_border(each_life):
    for life, _, axes in each_life:
        places, batches = curve(axes)
        expected = []
        for each in life.stretches:
            expected += [(each.start_tokens, each.plan.batch_tokens), (each.end_tokens, each.plan.batch_tokens)]
        assert list(zip(places.tolist(), batches.tolist(), strict=True)) == expected


def test_nothing_is_drawn_outside_of_the_axes(each_life):
    for life, *pair in each_life:
        for axes in pair:
            places, values = curve(axes)
            left, right = axes.get_xlim()
            low, high = axes.get_ylim()
            assert left <= places.min() and places.max() <= right
            assert low <= values.min() and values.max() <= high
            borders = [line.get_xdata()[0] for line in axes.lines[:-1]]
            assert borders == [each.start_tokens for each in life.stretches[1:]]


def test_the_value_at_every_border_is_written(seven):
    texts = {text.get_text() for text in drawn_texts(curves_figure(lives(seven)))}
    assert {"4e-4 at 3.67B", "9.29e-5 at 1.5T", "4.5e-5 at 1.85T", "4e-5 at 2T", "1.84M", "7.34M"} <= texts


def test_a_jump_at_a_border_is_drawn_and_both_values_are_written(seven):
    cooldown = next(node.plan for node in seven if node.plan.stage == "cooldown")
    jumping = replace(cooldown, schedule=replace(cooldown.schedule, peak=8e-4, floor=8e-4))
    figure = curves_figure([Life(("standard",), jumping)])
    places, rates = curve(figure.axes[0])
    assert sorted(rates[places == cooldown.start_tokens]) == pytest.approx([4.497e-5, 8e-4], rel=1e-3)
    assert "4.5e-5 to 8e-4 at 1.85T" in {text.get_text() for text in drawn_texts(figure)}
    assert_readable(figure)


def test_lives_that_agree_are_drawn_once_and_all_named(seven, family):
    figure = curves_figure(lives(seven))
    assert len(figure.axes) == 2
    assert "standard, math_code, chinese" in {text.get_text() for text in drawn_texts(figure)}
    assert len(curves_figure(lives(family(FAMILIES["learning rates"]))).axes) == 4


def test_labels_do_not_overlap(nodes):
    assert_readable(curves_figure(lives(nodes)))


@pytest.mark.parametrize("rate, text", [(0, "0"), (9.29e-5, "9.29e-5"), (4e-4, "4e-4"), (0.0125, "1.25e-2")])
def test_a_learning_rate_has_three_digits(rate, text):
    assert format_rate(rate) == text
