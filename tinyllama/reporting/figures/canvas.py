"""What all pictures share: type, colours, measures, and places for labels. Lengths are points, 72 to the inch."""

from bisect import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from tinyllama.units import format_tokens

SIZE = 8
"""Of letters."""
LINE = 11
"""From one line of letters to the next."""
MARGIN = 18
_HINTING = 1.04
"""How much wider than their outlines letters come out where they are fitted to pixels."""
INK, PALE = "#222222", "#6b6b6b"

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": SIZE,
    "text.color": INK,
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "axes.labelsize": SIZE,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": PALE,
    "ytick.color": PALE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.6,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "tinyllama",  # the same plan gives the same file
}
styled = rc_context(_STYLE)
"""Decorates what draws or saves."""

# Okabe and Ito's colours, which people tell apart whatever their eyes; black is for letters.
_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00", "#999999")
_HATCHES = ("", "//", "..", "xx")
_WHERE_SHIPPED_CORPORA_DIFFER = 1000


class Sheet:
    """A figure that is laid out from its upper left corner."""

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.figure = Figure((width / 72, height / 72))

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def text(
        self, left: float, top: float, text: str, size: float = SIZE, bold: bool = False, color: str = INK
    ) -> None:
        weight = "bold" if bold else "normal"
        place = left / self.width, 1 - top / self.height
        self.figure.text(*place, plain(text), size=size, weight=weight, color=color, ha="left", va="top")

    def title(self, left: float, top: float, width: float, words: Iterable[str], more: Iterable[str]) -> None:
        """A row's heading: what people call it, and its exact names beside."""
        heading = elided(", ".join(words), width * 0.7, 9, bold=True)
        self.text(left, top, heading, 9, bold=True)
        used = text_width(heading, 9, bold=True) + 8 if heading else 0.0
        self.text(left + used, top + 1, elided(", ".join(more), width - used), color=PALE)

    def square(self, left: float, top: float, side: float, **style: Any) -> None:
        self.bar(left, top, side, side, **style)

    def bar(self, left: float, top: float, width: float, height: float, **style: Any) -> None:
        corner = left / self.width, 1 - (top + height) / self.height
        transform = self.figure.transFigure
        box = Rectangle(corner, width / self.width, height / self.height, linewidth=0.5, transform=transform, **style)
        self.figure.add_artist(box)


@cache
def text_width(text: str, size: float = SIZE, bold: bool = False) -> float:
    if not text:
        return 0.0
    font = FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    outline = TextPath((0, 0), plain(text), size=size, prop=font)
    return float(outline.get_extents().x1) * _HINTING


def plain(text: str) -> str:
    """A text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")


def elided(text: str, width: float, size: float = SIZE, bold: bool = False) -> str:
    """The text, its middle left out as far as it is too wide."""

    def shortened(kept: int) -> str:
        return f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"

    if text_width(text, size, bold) <= width:
        return text
    too_many = bisect(range(len(text)), width, key=lambda kept: text_width(shortened(kept), size, bold))
    return shortened(max(0, too_many - 1))


@dataclass(frozen=True)
class Place:
    """Where a label's lower left corner lies."""

    text: str
    left: float
    bottom: float


def apart(wishes: Iterable[Place], space: float, gap: float = 5) -> list[Place]:
    """Labels that neither overlap nor leave the `space` from left to right: each as near above its wish as it can."""
    placed: list[Place] = []
    for wish in wishes:
        width, bottom = text_width(wish.text), wish.bottom
        left = max(0.0, min(wish.left, space - width))
        beside = [each for each in placed if each.left - width - gap < left < each.left + text_width(each.text) + gap]
        # A hair less than a line, which rounding may take from what was just raised by one.
        while hit := [each.bottom for each in beside if abs(bottom - each.bottom) < LINE - 0.01]:
            bottom = max(hit) + LINE
        placed.append(Place(wish.text, left, bottom))
    return placed


def label(axes: Axes, left: float, bottom: float, text: str, **style: Any) -> None:
    """Letters at a place that counts from the lower left corner of the axes."""
    axes.annotate(
        plain(text), (left, bottom), xycoords="axes points", ha="left", va="bottom", annotation_clip=False, **style
    )


def token_axis(axes: Axes, start: int, end: int, space: float = 0, labels: bool = True) -> None:
    """Tokens of life from left to right, with `space` (a part of them) left free beyond the end."""
    ticks = [tick for tick in MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]).tick_values(start, end) if start <= tick <= end]
    axes.set_xlim(start, end + (end - start) * space)
    axes.spines["bottom"].set_bounds(start, end)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: format_tokens(round(tokens))))
    axes.tick_params(axis="x", labelbottom=labels)


def border(axes: Axes, tokens: float) -> None:
    """The line where a stage ends and the next begins."""
    axes.axvline(tokens, color=INK, linewidth=0.7, linestyle=(0, (3, 2)), zorder=3)


def corpus_styles(names: Iterable[str]) -> dict[str, Any]:
    """How the area of each corpus is filled: by its own name, so that it looks alike in all pictures.

    Where two names pick one colour the later takes the next that is free; beyond eight, hatching tells them apart.
    """
    styles: dict[str, Any] = {}
    count = len(_COLOURS)
    for place, name in enumerate(sorted(names)):
        taken = {style["facecolor"] for style in list(styles.values())[place - place % count :]}
        wish = crc32(name.encode(), _WHERE_SHIPPED_CORPORA_DIFFER)
        colour = next(each for step in range(count) if (each := _COLOURS[(wish + step) % count]) not in taken)
        styles[name] = {"facecolor": colour, "hatch": _HATCHES[place // count % len(_HATCHES)], "edgecolor": "white"}
    return styles


def ink_on(colour: str) -> str:
    """Black or white, whichever reads better."""
    red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return INK if 0.3 * red + 0.59 * green + 0.11 * blue > 0.45 else "white"


def rows_of(widths: Sequence[float], space: float) -> list[list[int]]:
    """Things of given widths one after the other, on as many rows as they need."""
    rows: list[list[int]] = [[]]
    used = 0.0
    for index, width in enumerate(widths):
        if rows[-1] and used + width > space:
            rows.append([])
            used = 0.0
        rows[-1].append(index)
        used += width
    return rows


@styled
def save(figure: Figure, path: Path) -> tuple[Path, Path]:
    """Write PATH.svg and PATH.png; the same picture gives the same bytes."""
    files = path.with_name(f"{path.name}.svg"), path.with_name(f"{path.name}.png")
    figure.savefig(files[0], metadata={"Date": None})
    figure.savefig(files[1], dpi=160)
    return files
