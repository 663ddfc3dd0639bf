"""Prepared corpora: how long their documents are, and where their tokens come from."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator

from tinyllama.data.documents import Lengths
from tinyllama.reporting.figures import canvas
from tinyllama.reporting.figures.canvas import INK, LINE, MARGIN, PALE, Sheet, text_width
from tinyllama.units import format_tokens

_WIDTH, _HEIGHT, _SCALE = 440.0, 96.0, 34.0
_HEAD, _BETWEEN, _TICKS = 26.0, 34.0, 34.0
_ROW = 15.0
_MOST_ROWS = 40
_NAME_WIDTH = 170.0


@dataclass(frozen=True)
class Amount:
    """What belongs to a name."""

    name: str
    documents: int
    tokens: int


@canvas.styled
def lengths_figure(title: str, corpus: str, lengths: Lengths, seq_len: int) -> Figure:
    """How many of the documents, and how much of the text, have which length; `seq_len` is marked."""
    sheet = Sheet(MARGIN + _SCALE + _WIDTH + MARGIN, MARGIN + _HEAD + 2 * _HEIGHT + _BETWEEN + _TICKS + MARGIN)
    sheet.text(MARGIN, MARGIN, title, 10, bold=True)
    top = MARGIN + _HEAD
    style = canvas.corpus_styles([corpus])[corpus]
    for heading, amounts in (("documents", lengths.documents), ("tokens in them", lengths.tokens)):
        axes = sheet.axes(MARGIN + _SCALE, top, _WIDTH, _HEIGHT)
        shares = [amount / max(1, sum(amounts)) for amount in amounts]
        edges = [2**octave for octave in range(len(shares) + 1)]
        widths = [end - begin for begin, end in zip(edges, edges[1:], strict=False)]
        axes.bar(edges[:-1], shares, widths, align="edge", linewidth=0.5, **style)
        _length_axis(axes, edges[-1])
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
        sheet.text(MARGIN + _SCALE + 6, top - 4, f"share of the {heading}", color=PALE)
        if seq_len < edges[-1]:
            axes.axvline(seq_len, color=INK, linewidth=0.7, linestyle=(0, (3, 2)), zorder=3)
        top += _HEIGHT + _BETWEEN
    sheet.text(
        MARGIN + _SCALE, top - _BETWEEN + 18, f"tokens of a document; dashed: a sample of {seq_len:,}", color=PALE
    )
    return sheet.figure


def _length_axis(axes: Axes, end: int) -> None:
    axes.set_xscale("log")
    axes.set_xlim(1, end)
    ticks = [10**power for power in range(len(str(end)))]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([format_tokens(tick) for tick in ticks]))
    axes.xaxis.set_minor_locator(FixedLocator([]))


@canvas.styled
def amounts_figure(title: str, amounts: Sequence[Amount], corpus: str | None = None) -> Figure:
    """A bar of tokens for each name, the longest first.

    Args:
        corpus: whose colour all bars have; None: each is a corpus.
    """
    rows = _the_largest(amounts)
    total = max(1, sum(amount.tokens for amount in amounts))
    labels = [
        f"{format_tokens(row.tokens)} tokens, {100 * row.tokens / total:.3g} %, {row.documents:,} documents"
        for row in rows
    ]
    names = [canvas.elided(row.name, _NAME_WIDTH) for row in rows]
    left = MARGIN + max(map(text_width, names)) + 8
    room = left + _WIDTH / 2 + 6 + max(map(text_width, labels)) + MARGIN
    sheet = Sheet(
        max(room, MARGIN + text_width(title, 10, bold=True) + MARGIN), MARGIN + _HEAD + _ROW * len(rows) + MARGIN
    )
    sheet.text(MARGIN, MARGIN, title, 10, bold=True)
    styles = canvas.corpus_styles([corpus] if corpus else [row.name for row in rows])
    longest = max(1, *(row.tokens for row in rows))
    for number, (row, name, label) in enumerate(zip(rows, names, labels, strict=True)):
        top = MARGIN + _HEAD + number * _ROW
        sheet.text(MARGIN, top + 1, name)
        width = _WIDTH / 2 * row.tokens / longest
        sheet.bar(left, top, width, LINE - 1, **styles[corpus or row.name])
        sheet.text(left + width + 6, top + 1, label, color=PALE)
    return sheet.figure


def _the_largest(amounts: Sequence[Amount]) -> list[Amount]:
    """Largest first; those beyond _MOST_ROWS as one."""
    ordered = sorted(amounts, key=lambda amount: (-amount.tokens, amount.name))
    rest = ordered[_MOST_ROWS:]
    others = Amount(
        f"{len(rest)} others", sum(amount.documents for amount in rest), sum(amount.tokens for amount in rest)
    )
    return [*ordered[:_MOST_ROWS], *([others] if rest else [])]
