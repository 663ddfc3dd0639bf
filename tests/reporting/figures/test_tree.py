"""The picture of the tree shows every run once, where it belongs."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.transforms import Bbox

from tests.reporting.figures.conftest import FAMILIES, assert_readable, drawn_texts
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.reporting.figures.tree import tree_figure

pytestmark = pytest.mark.xdist_group("figures")  # composing the families is most of it


def boxes(figure):
    return {patch.get_gid(): patch.get_bbox() for patch in figure.axes[0].patches if patch.get_gid()}


def edges(figure):
    return [patch.get_path().vertices for patch in figure.axes[0].patches if isinstance(patch, PathPatch)]


def test_every_run_has_one_box_and_children_stand_to_the_right_of_their_parent(nodes):
    drawn = boxes(tree_figure(nodes))
    assert set(drawn) == {node.plan.digest for node in nodes}
    for node in nodes:
        if node.plan.parent is not None:
            assert drawn[node.plan.parent.digest].x1 < drawn[node.plan.digest].x0
    for one, other in combinations(drawn.values(), 2):
        assert not one.padded(1).overlaps(other)


def test_an_edge_leads_from_every_parent_to_its_child(nodes):
    figure = tree_figure(nodes)
    drawn = boxes(figure)
    middles = {digest: (box.y0 + box.y1) / 2 for digest, box in drawn.items()}
    expected = {
        (drawn[parent.digest].x1, middles[parent.digest], drawn[node.plan.digest].x0, middles[node.plan.digest])
        for node in nodes
        if (parent := node.plan.parent) is not None
    }
    assert {(*path[0], *path[-1]) for path in edges(figure)} == expected


def test_nothing_is_drawn_outside_of_the_axes(nodes):
    figure = tree_figure(nodes)
    (axes,) = figure.axes
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    for patch in axes.patches:
        box = patch.get_path().get_extents(patch.get_patch_transform())
        assert left <= box.x0 and box.x1 <= right
        assert top <= box.y0 and box.y1 <= bottom


def test_a_box_tells_what_the_run_is(seven):
    texts = [text.get_text() for text in drawn_texts(tree_figure(seven))]
    for node in seven:
        assert node.plan.digest[:12] in texts
    assert texts.count("continual") == 3
    assert "standard, math_code, chinese" in texts
    assert texts.count("350B tokens, 1.5T to 1.85T") == 3
    assert texts.count("absent") == 7 + 1  # the key names it once


def test_the_bar_of_a_box_shows_where_in_life_the_run_lies(seven):
    figure = tree_figure(seven)
    drawn = boxes(figure)
    life = max(node.plan.end_tokens for node in seven)
    bars = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle) and patch.get_height() == 3]
    for node in seven:
        box = drawn[node.plan.digest]
        track, bar = (b.get_bbox() for b in bars if box.x0 < b.get_x() < box.x1 and box.y0 < b.get_y() < box.y1)
        assert (bar.x0 - track.x0) / track.width == pytest.approx(node.plan.start_tokens / life)
        assert bar.width / track.width == pytest.approx(node.plan.tokens / life)


def stripes(figure):
    """The colour of each box's edge, by digest."""
    narrow = [each for each in figure.axes[0].patches if isinstance(each, Rectangle) and each.get_width() == 5]
    colours = {each.get_xy(): to_hex(each.get_facecolor()) for each in narrow}
    return {digest: colours[box.x0, box.y0] for digest, box in boxes(figure).items()}


def test_the_colour_is_that_of_the_runs_status_on_disk(seven, tmp_path):
    assert set(stripes(tree_figure(seven)).values()) == {"#999999"}
    here = [
        replace(node, config=replace(node.config, paths=replace(node.config.paths, runs=str(tmp_path))))
        for node in seven
    ]
    basic, continual = (RunFolder.of(tmp_path, node.plan) for node in here[:2])
    for folder in (basic, continual):
        folder.path.mkdir(parents=True)
        folder.identity.write_text("{}")
    basic.done.write_text("{}")
    figure = tree_figure(here)
    assert list(stripes(figure).values()) == ["#009e73", "#e69f00"] + ["#999999"] * 5
    words = [text.get_text() for text in figure.axes[0].texts]
    assert [words.count(status) for status in ("done", "partial", "absent")] == [1, 1, 5]


def test_a_fork_is_dashed_and_says_what_it_forks_off(family):
    figure = tree_figure(family(FAMILIES["forks and two ramps"]))
    texts = {text.get_text() for text in drawn_texts(figure)}
    assert {"absent, forks off basic", "absent, forks off continual"} <= texts
    dashed = [p for p in figure.axes[0].patches if isinstance(p, PathPatch) and p.get_linestyle() != "solid"]
    assert len(dashed) == 2


def test_labels_do_not_overlap_and_stay_inside_their_boxes(nodes):
    figure = tree_figure(nodes)
    assert_readable(figure)
    (axes,) = figure.axes
    frames = [
        Bbox.from_extents(np.sort(axes.transData.transform(box.get_points()), 0)) for box in boxes(figure).values()
    ]
    for text in axes.texts:
        corners = text.get_window_extent().get_points()
        around = [frame for frame in frames if all(frame.contains(*corner) for corner in corners)]
        assert len(around) == 1, text.get_text()
