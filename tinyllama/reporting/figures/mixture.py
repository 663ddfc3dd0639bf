"""Shares of the corpora over tokens of life: a row for each life, and each ramp once more from near."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator

from tinyllama.reporting.figures import canvas
from tinyllama.reporting.figures.canvas import INK, LINE, MARGIN, PALE, SIZE, Place, Sheet, text_width
from tinyllama.reporting.figures.life import Life, Stretch
from tinyllama.units import format_tokens

_WIDTH, _NEAR_WIDTH, _HEIGHT = 500.0, 96.0, 84.0
_SCALE, _GAP = 34.0, 26.0
"""What the numbers of an axis take to its left, and what lies between axes."""
_TITLE, _TICKS = 14.0, 28.0
"""What titles take above a row, and numbers below it."""
_NARROW = 1 / 25
"""A ramp that takes less than this part of a life is shown from near."""


@canvas.styled
def mixture_figure(lives: Sequence[Life]) -> Figure:
    """The figure; each corpus is one area of each axes, labelled with its name."""
    start, end = lives[0].start_tokens, max(life.end_tokens for life in lives)
    ramps = [[each for each in life.stretches if _is_narrow(each, end - start)] for life in lives]
    columns = max(map(len, ramps))
    width = MARGIN + _SCALE + _WIDTH + columns * (_GAP + _NEAR_WIDTH) + MARGIN + 6
    corpora = list(dict.fromkeys(name for life in lives for name in _corpora(life)))
    styles = canvas.corpus_styles(corpora)
    keys = canvas.rows_of([text_width(name) + 30 for name in corpora], width - 2 * MARGIN)
    names = [_place_names(life, start, end) for life in lives]
    heads = [_TITLE + max(place.bottom for place in each) + LINE - _HEIGHT for each in names]
    top = MARGIN + 20.0 + len(keys) * (LINE + 3) + 6

    sheet = Sheet(width, top + sum(heads) + len(lives) * (_HEIGHT + _TICKS) + MARGIN)
    sheet.text(MARGIN, MARGIN, f"{lives[0].leaf.family}: mixture over tokens of life", size=10, bold=True)
    _draw_keys(sheet, [[corpora[index] for index in row] for row in keys], styles)
    for life, near, placed, head in zip(lives, ramps, names, heads, strict=True):
        left = MARGIN + _SCALE
        sheet.title(left, top, _WIDTH, life.titles, [life.leaf.name])
        top += head
        axes = sheet.axes(left, top, _WIDTH, _HEIGHT)
        _draw_areas(axes, life, styles)
        _draw_shares(axes, life, styles, _WIDTH / (end - start))
        canvas.token_axis(axes, start, end)
        for place in placed:
            canvas.label(axes, place.left, place.bottom, place.text)
        for column, stretch in enumerate(near):
            beside = sheet.axes(left + _WIDTH + _GAP + column * (_GAP + _NEAR_WIDTH), top, _NEAR_WIDTH, _HEIGHT)
            _draw_areas(beside, life, styles)
            _look_closely(beside, stretch, life)
        top += _HEIGHT + _TICKS
    return sheet.figure


def _is_narrow(stretch: Stretch, life_tokens: int) -> bool:
    return stretch.ramp is not None and stretch.ramp[1] - stretch.ramp[0] < _NARROW * life_tokens


def _corpora(life: Life) -> list[str]:
    return list(dict.fromkeys(name for stretch in life.stretches for name in stretch.plan.corpora))


def _corners(life: Life) -> tuple[list[int], list[dict[str, float]]]:
    """Tokens of life and the shares there, wherever these bend or jump; between corners they are straight."""
    places, shares = [], []
    for stretch in life.stretches:
        weights_at, end = stretch.plan.weights_at, stretch.end_position
        places.append(stretch.start_tokens)
        shares.append(weights_at(0))
        if stretch.ramp is not None and stretch.ramp[1] < stretch.end_tokens:
            places.append(stretch.ramp[1])
            shares.append(weights_at(-(-stretch.plan.ramp_tokens // stretch.plan.seq_len)))
        places.append(stretch.end_tokens)
        shares.append(weights_at(end))
    return places, shares


def _draw_areas(axes: Axes, life: Life, styles: dict[str, Any]) -> None:
    places, shares = _corners(life)
    below = [0.0] * len(places)
    for name in _corpora(life):
        above = [low + share.get(name, 0.0) for low, share in zip(below, shares, strict=True)]
        axes.fill_between(places, below, above, label=name, linewidth=0.5, **styles[name])
        below = above
    for stretch in life.stretches[1:]:
        canvas.border(axes, stretch.start_tokens)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
    axes.yaxis.set_major_formatter(FixedFormatter(["0 %", "50 %", "100 %"]))


def _draw_shares(axes: Axes, life: Life, styles: dict[str, Any], scale: float) -> None:
    """Write each share where it stands still, into its area if it is wide and high enough."""
    for stretch in life.stretches:
        begin = stretch.ramp[1] if stretch.ramp else stretch.start_tokens
        below = 0.0
        shares = stretch.plan.weights_at(stretch.end_position)
        for name in _corpora(life):
            share = shares.get(name, 0.0)
            text = f"{share * 100:.3g} %"
            width = text_width(text)
            if share * _HEIGHT >= LINE + 1 and (stretch.end_tokens - begin) * scale >= width + 6:
                centre = ((begin + stretch.end_tokens) / 2 - life.start_tokens) * scale
                bottom = (below + share / 2) * _HEIGHT - SIZE / 2 - 1
                colour = canvas.ink_on(styles[name]["facecolor"])
                canvas.label(axes, centre - width / 2, bottom, text, color=colour)
            below += share


def _place_names(life: Life, start: int, end: int) -> list[Place]:
    """The stages' names above the axes, each over its middle."""
    wishes = []
    for stretch in life.stretches:
        text = canvas.elided(stretch.plan.stage, 160)
        centre = (stretch.middle - start) / (end - start) * _WIDTH
        wishes.append(Place(text, centre - text_width(text) / 2, _HEIGHT + 2))
    return canvas.apart(wishes, _WIDTH)


def _draw_keys(sheet: Sheet, rows: list[list[str]], styles: dict[str, Any]) -> None:
    for row, names in enumerate(rows):
        left, top = float(MARGIN), MARGIN + 20 + row * (LINE + 3)
        for name in names:
            sheet.square(left, top, 9, **styles[name])
            sheet.text(left + 13, top, name)
            left += text_width(name) + 30


def _look_closely(axes: Axes, stretch: Stretch, life: Life) -> None:
    """The ramp with a quarter of its length on either side."""
    assert stretch.ramp is not None
    begin, end = stretch.ramp
    around = (end - begin) / 4
    axes.set_xlim(max(life.start_tokens, begin - around), min(life.end_tokens, end + around))
    axes.axvline(end, color=INK, linewidth=0.7, linestyle=(0, (1, 2)), zorder=3)
    axes.xaxis.set_major_locator(FixedLocator([begin, end]))
    axes.xaxis.set_major_formatter(FixedFormatter([format_tokens(begin), f"+{format_tokens(end - begin)}"]))
    axes.yaxis.set_major_formatter(FixedFormatter(["", "", ""]))
    text = canvas.elided(f"ramp of {stretch.plan.stage}", _NEAR_WIDTH)
    canvas.label(axes, (_NEAR_WIDTH - text_width(text)) / 2, _HEIGHT + 2, text, color=PALE)
