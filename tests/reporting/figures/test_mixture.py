"""The picture of the mixture shows the plan's own numbers."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.reporting.figures.conftest import FAMILIES, assert_readable, drawn_texts
from tinyllama.reporting.figures.life import Life, lives
from tinyllama.reporting.figures.mixture import mixture_figure

pytestmark = pytest.mark.xdist_group("figures")  # composing the families is most of it


def wide_axes(figure: Figure) -> list[Axes]:
    """Those of whole lives, from the top; the others show a ramp from near."""
    widest = max(axes.get_position().width for axes in figure.axes)
    return [axes for axes in figure.axes if axes.get_position().width > widest * 0.99]


def bands(axes: Axes) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each corpus: tokens, lower and upper edge of its area, read back from the polygon that was drawn."""
    found = {}
    for area in axes.collections:
        (polygon,) = (path.vertices for path in area.get_paths())
        count = (len(polygon) - 3) // 2
        below, above = polygon[1 : count + 1], polygon[count + 2 : -1][::-1]
        assert np.array_equal(below[:, 0], above[:, 0])
        found[area.get_label()] = below[:, 0], below[:, 1], above[:, 1]
    return found


def test_each_area_is_as_high_as_the_plans_weight_at_every_border_and_between(nodes):
    shown = lives(nodes)
    for life, axes in zip(shown, wide_axes(mixture_figure(shown)), strict=True):
        drawn = bands(axes)
        for stretch in life.stretches:
            count = (stretch.end_tokens - stretch.start_tokens) // stretch.plan.seq_len
            ramp = stretch.plan.ramp_tokens // stretch.plan.seq_len
            between = {1, ramp // 2, ramp - 1, ramp + 1, count // 2, count - 1}
            for position in (each for each in between if 0 < each < count):
                tokens = stretch.start_tokens + position * stretch.plan.seq_len
                for name, weight in stretch.plan.weights_at(position).items():
                    places, below, above = drawn[name]
                    assert np.interp(tokens, places, above - below) == pytest.approx(weight, abs=1e-6)


def test_borders_and_the_ends_of_ramps_are_met_exactly(nodes):
    shown = lives(nodes)
    for life, axes in zip(shown, wide_axes(mixture_figure(shown)), strict=True):
        for places, _, _ in bands(axes).values():
            assert {tokens for each in life.stretches for tokens in (each.start_tokens, each.end_tokens)} <= set(places)
            assert {each.ramp[1] for each in life.stretches if each.ramp} <= set(places)


def test_the_areas_fill_the_axes_and_nothing_lies_outside(nodes):
    shown = lives(nodes)
    for life, axes in zip(shown, wide_axes(mixture_figure(shown)), strict=True):
        drawn = list(bands(axes).values())
        left, right = axes.get_xlim()
        for places, below, above in drawn:
            assert places[0] == left == life.start_tokens and places[-1] == life.end_tokens <= right
            assert (below >= 0).all() and (below <= above).all() and (above <= 1 + 1e-9).all()
        assert drawn[0][1] == pytest.approx(0) and drawn[-1][2] == pytest.approx(1)
        for (_, _, above), (_, below, _) in zip(drawn, drawn[1:], strict=False):
            assert np.array_equal(above, below)


def test_a_jump_of_the_mixture_at_a_border_is_drawn_as_a_jump(family):
    (life,) = lives(family([["+variant=chinese", "stage=continual", "stage.ramp_tokens=0"]]))
    axes = mixture_figure([life]).axes[0]
    places, below, above = bands(axes)["slimpajama"]
    border = life.stretches[1].start_tokens
    assert sorted((above - below)[places == border]) == [0.5, 1.0]


def test_a_ramp_that_the_whole_life_would_hide_is_shown_from_near(seven):
    figure = mixture_figure(lives(seven))
    near = [axes for axes in figure.axes if axes not in wide_axes(figure)]
    continuals = [node.plan for node in seven if node.plan.stage == "continual" and len(node.plan.corpora) > 1]
    assert len(near) == len(continuals) == 2
    for axes, plan in zip(near, continuals, strict=True):
        left, right = axes.get_xlim()
        begin, end = plan.start_tokens, plan.start_tokens + plan.ramp_tokens
        assert left < begin < end < right
        assert end - begin > (right - left) / 2
        assert list(axes.get_xticks()) == [begin, end]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1.5T", "+6B"]


def test_every_ramp_of_a_life_has_its_axes(family):
    figure = mixture_figure(lives(family(FAMILIES["forks and two ramps"])))
    assert len(wide_axes(figure)) == 4
    assert len(figure.axes) - 4 == 1 + 1 + 2 + 2


def test_stages_are_named_and_shares_are_written(seven):
    texts = [text.get_text() for text in drawn_texts(mixture_figure(lives(seven)))]
    for stage in ("basic", "continual", "cooldown"):
        assert texts.count(stage) == 3
    assert {"standard", "math_code", "chinese", "75 %", "15 %", "50 %", "100 %"} <= set(texts)
    assert {node.plan.name for node in seven if node.plan.stage == "cooldown"} <= set(texts)


def test_a_share_is_written_inside_its_own_area(family):
    # The second stage reads what the first did not, so that the order of the areas is not that of the plan.
    first = ["root_mix.weights={slimpajama: 0}", "+root_mix.weights.skypile=1"]
    then = ["data_mix.weights={slimpajama: 30, skypile: 70}"]
    (life,) = lives(family([["+variant=chinese", "stage=continual", *first, *then]]))
    figure = mixture_figure([life])
    axes = figure.axes[0]
    drawn = bands(axes)
    expected = {"30 %": "slimpajama", "70 %": "skypile"}
    seen = 0
    for text in drawn_texts(figure):
        if (name := expected.get(text.get_text())) is not None:
            box = text.get_window_extent()
            tokens, height = axes.transData.inverted().transform(((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2))
            places, below, above = drawn[name]
            assert np.interp(tokens, places, below) < height < np.interp(tokens, places, above)
            seen += 1
    assert seen == 2


def test_labels_do_not_overlap(nodes):
    assert_readable(mixture_figure(lives(nodes)))


def test_labels_of_many_corpora_with_long_names_do_not_overlap(seven):
    names = [f"a-corpus-with-a-very-long-name-{place}" for place in range(12)]
    weights = dict.fromkeys(names, 1 / 12)
    plan = replace(seven[0].plan, corpora=dict.fromkeys(names), start_weights=weights, end_weights=weights)
    assert_readable(mixture_figure([Life(("a-variant-with-a-very-long-name",) * 12, plan)]))
