"""Learning rate and batch size over tokens of life, one above the other; lives that agree in both are drawn once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tinyllama.reporting.figures import canvas
from tinyllama.reporting.figures.canvas import LINE, MARGIN, Place, Sheet, text_width
from tinyllama.reporting.figures.life import Life
from tinyllama.units import format_tokens

_WIDTH, _SCALE, _BETWEEN, _TICKS = 620.0, 46.0, 12.0, 34.0
_HIGHEST_RATE, _HIGHEST_BATCH = 130.0, 44.0
"""Where the largest value of each axes lies above its foot."""
_BEYOND = 0.16
"""Room beyond the end of life, as a part of it, for the value reached there."""
_BLUE, _ORANGE = "#0072B2", "#D55E00"
_SAMPLES = 200
"""Places between two at which a curve bends or jumps."""

_Curve = tuple[list[int], list[float]]


@canvas.styled
def curves_figure(lives: Sequence[Life]) -> Figure:
    """The figure; of each pair of axes the first shows the learning rate, the second the batch, one line each."""
    start, end = lives[0].start_tokens, max(life.end_tokens for life in lives)
    rows = [_Row(alike, start, end) for alike in _merged(lives)]
    top = MARGIN + 24.0
    sheet = Sheet(MARGIN + _SCALE + _WIDTH + MARGIN, top + sum(row.height for row in rows) + MARGIN - 12)
    sheet.text(MARGIN, MARGIN, f"{lives[0].leaf.family}: learning rate and batch over tokens of life", 10, bold=True)
    for row in rows:
        row.draw(sheet, top)
        top += row.height
    return sheet.figure


def _merged(lives: Sequence[Life]) -> list[list[Life]]:
    groups: dict[object, list[Life]] = {}
    for life in lives:
        key = tuple(
            (each.plan.stage, each.start_tokens, each.end_tokens, each.plan.batch_tokens, each.plan.schedule)
            for each in life.stretches
        )
        groups.setdefault(key, []).append(life)
    return list(groups.values())


@dataclass(frozen=True)
class _Note:
    """A label of a point: over it, or beside it on the right."""

    text: str
    tokens: int
    value: float
    beside: bool = False


class _Row:
    """The two axes of lives that agree, measured before the sheet is cut."""

    def __init__(self, lives: Sequence[Life], start: int, end: int):
        self.lives, self.life, self.start, self.end = lives, lives[0], start, end
        self.rates, self.batches = _rates(self.life), _batches(self.life)
        self.rate_labels = self._place(_rate_notes(self.life), _HIGHEST_RATE / max(self.rates[1]))
        self.batch_labels = self._place(_batch_notes(self.life), _HIGHEST_BATCH / max(self.batches[1]))
        self.rate_height = max(_HIGHEST_RATE, *(place.bottom for place in self.rate_labels)) + LINE + 2
        self.batch_height = max(_HIGHEST_BATCH, *(place.bottom for place in self.batch_labels)) + LINE + 2
        names = [_Note(canvas.elided(each.plan.stage, 160), each.middle, 0) for each in self.life.stretches]
        self.names = self._place(names, scale=1)
        self.head = 14 + max(place.bottom for place in self.names) + LINE

    @property
    def height(self) -> float:
        return self.head + self.rate_height + _BETWEEN + self.batch_height + _TICKS

    def draw(self, sheet: Sheet, top: float) -> None:
        left = MARGIN + _SCALE
        titles = dict.fromkeys(title for life in self.lives for title in life.titles)
        sheet.title(left, top, _WIDTH, titles, [life.leaf.name for life in self.lives])
        top += self.head
        axes = sheet.axes(left, top, _WIDTH, self.rate_height)
        self._draw(axes, self.rates, _BLUE, self.rate_labels, self.rate_height / _HIGHEST_RATE)
        axes.set_ylabel("learning rate")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: format_rate(rate)))
        canvas.token_axis(axes, self.start, self.end, _BEYOND, labels=False)
        for place in self.names:
            canvas.label(axes, place.left, self.rate_height + place.bottom - 3, place.text)
        below = sheet.axes(left, top + self.rate_height + _BETWEEN, _WIDTH, self.batch_height)
        self._draw(below, self.batches, _ORANGE, self.batch_labels, self.batch_height / _HIGHEST_BATCH)
        below.set_ylabel("batch tokens")
        below.yaxis.set_major_formatter(FuncFormatter(lambda tokens, _: format_tokens(round(tokens))))
        below.yaxis.set_major_locator(MaxNLocator(3))
        canvas.token_axis(below, self.start, self.end, _BEYOND)

    def _draw(self, axes: Axes, curve: _Curve, colour: str, labels: Sequence[Place], headroom: float) -> None:
        for stretch in self.life.stretches[1:]:
            canvas.border(axes, stretch.start_tokens)
        axes.plot(*curve, color=colour, solid_joinstyle="miter", clip_on=False)
        axes.set_ylim(0, max(curve[1]) * headroom)
        axes.yaxis.set_label_coords(-_SCALE / _WIDTH, 0.5)
        paper = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
        for place in labels:
            canvas.label(axes, place.left, place.bottom, place.text, bbox=paper)

    def _place(self, notes: Sequence[_Note], scale: float) -> list[Place]:
        wishes = []
        for note in notes:
            x = (note.tokens - self.start) / (self.end - self.start) / (1 + _BEYOND) * _WIDTH
            left = x + 4 if note.beside else x - text_width(note.text) / 2
            wishes.append(Place(note.text, left, note.value * scale + 5))
        return canvas.apart(wishes, _WIDTH)


def _rates(life: Life) -> _Curve:
    """Tokens of life and learning rates: dense, and exact wherever the curve bends, jumps or meets a border."""
    places: list[int] = []
    rates: list[float] = []
    for stretch in life.stretches:
        schedule = stretch.plan.schedule
        bends = schedule.warmup_tokens, schedule.horizon_tokens
        dense = list(_between(stretch.start_tokens, stretch.end_tokens, *bends))
        places += dense
        rates += map(schedule, dense)
    return places, rates


def _between(start: int, end: int, *bends: int) -> Iterator[int]:
    corners = sorted({start, end, *(bend for bend in bends if start < bend < end)})
    for left, right in zip(corners, corners[1:], strict=False):
        yield from (left + (right - left) * step // _SAMPLES for step in range(_SAMPLES))
    yield end


def _batches(life: Life) -> _Curve:
    places = [tokens for each in life.stretches for tokens in (each.start_tokens, each.end_tokens)]
    return places, [float(each.plan.batch_tokens) for each in life.stretches for _ in range(2)]


def _rate_notes(life: Life) -> list[_Note]:
    """The learning rate at the peak and at every border; where it jumps, both sides of it."""
    stretches, notes = life.stretches, []
    schedule = stretches[0].plan.schedule
    peak = max(life.start_tokens, schedule.warmup_tokens)
    if peak < stretches[0].end_tokens:
        text = f"{format_rate(schedule(peak))} at {format_tokens(peak)}"
        notes.append(_Note(text, peak, schedule(peak), beside=True))
    for stretch, child in zip(stretches, [*stretches[1:], None], strict=True):
        before = stretch.plan.schedule(stretch.end_tokens)
        after = child.plan.schedule(stretch.end_tokens) if child else before
        rates = " to ".join(dict.fromkeys((format_rate(before), format_rate(after))))
        text = f"{rates} at {format_tokens(stretch.end_tokens)}"
        notes.append(_Note(text, stretch.end_tokens, max(before, after), beside=True))
    return notes


def _batch_notes(life: Life) -> list[_Note]:
    return [
        _Note(format_tokens(each.plan.batch_tokens), each.middle, each.plan.batch_tokens) for each in life.stretches
    ]


def format_rate(rate: float) -> str:
    """0.0000929 -> "9.29e-5"; three significant digits."""
    mantissa, exponent = f"{rate:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if rate else "0"
