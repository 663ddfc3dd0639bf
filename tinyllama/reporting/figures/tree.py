"""The family tree: a box for each run, its children to the right of it."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from tinyllama.checkpoint.layout import Status
from tinyllama.planning.plan import RunPlan
from tinyllama.planning.tree import Node
from tinyllama.reporting.family import status_of
from tinyllama.reporting.figures import canvas
from tinyllama.reporting.figures.canvas import INK, LINE, MARGIN, PALE, Sheet, text_width
from tinyllama.units import format_tokens

_NARROWEST, _WIDEST, _PADDING = 120.0, 250.0, 10.0
_HEIGHT = 5 * LINE + 22.0
_BETWEEN_COLUMNS, _BETWEEN_ROWS = 44.0, 14.0
_STRIPE, _TRACK = 5.0, 3.0
"""Of a box: the width of the coloured edge, and the height of the bar that shows where in life the run lies."""
_COLOURS = {Status.absent: "#999999", Status.partial: "#E69F00", Status.done: "#009E73"}
_BAR, _FAINT, _EDGE = "#0072B2", "#e4e4e4", "#bdbdbd"


@canvas.styled
def tree_figure(nodes: Sequence[Node]) -> Figure:
    """The figure; its one axes counts points from the upper left, and a box's rectangle has the digest as its gid."""
    rows = _rows([node.plan for node in nodes])
    texts = {node.plan.digest: _texts(node, status_of(node)) for node in nodes}
    widths = [text_width(text, bold=line == 0) for lines in texts.values() for line, text in enumerate(lines)]
    width = min(_WIDEST, max(_NARROWEST, max(widths) + 2 * _PADDING + _STRIPE))
    columns = max(len(node.plan.path) for node in nodes)
    across = columns * width + (columns - 1) * _BETWEEN_COLUMNS
    down = (max(rows.values()) + 1) * (_HEIGHT + _BETWEEN_ROWS) - _BETWEEN_ROWS
    head = 50.0

    title = f"{nodes[0].plan.family}: {len(nodes)} run{'s' * (len(nodes) > 1)}"
    sheet = Sheet(max(across, text_width(title, 10, bold=True), 200) + 2 * MARGIN, head + down + MARGIN)
    sheet.text(MARGIN, MARGIN, title, 10, bold=True)
    left = float(MARGIN)
    for status in Status:
        sheet.square(left, MARGIN + 16, 8, facecolor=_COLOURS[status], edgecolor="white")
        sheet.text(left + 12, MARGIN + 15, status.value, color=PALE)
        left += text_width(status.value) + 28
    axes = sheet.axes(MARGIN - 1, head - 1, across + 2, down + 2)  # room for half of the outermost lines
    axes.set_xlim(-1, across + 1)
    axes.set_ylim(down + 1, -1)
    axes.axis("off")
    corners = {
        node.plan.digest: (
            (len(node.plan.path) - 1) * (width + _BETWEEN_COLUMNS),
            rows[node.plan.digest] * (_HEIGHT + _BETWEEN_ROWS),
        )
        for node in nodes
    }
    life_tokens = max(node.plan.end_tokens for node in nodes)
    for node in nodes:
        corner = corners[node.plan.digest]
        if node.plan.parent is not None:
            _draw_edge(axes, corners[node.plan.parent.digest], corner, width, dashed=_forks(node.plan))
        _draw_box(axes, corner, width, texts[node.plan.digest], _COLOURS[status_of(node)], node.plan.digest)
        _draw_track(axes, corner, width, node.plan, life_tokens)
    return sheet.figure


def _rows(plans: Sequence[RunPlan]) -> dict[str, float]:
    """Which row each run stands in, by digest: leaves one below the other, a parent in the middle of its children."""
    children: dict[str, list[str]] = {plan.digest: [] for plan in plans}
    for plan in plans:
        if plan.parent is not None:
            children[plan.parent.digest].append(plan.digest)
    rows: dict[str, float] = {}
    leaves = [plan.digest for plan in plans if not children[plan.digest]]
    for row, digest in enumerate(leaves):
        rows[digest] = row
    for plan in reversed(plans):  # children before parents
        if below := children[plan.digest]:
            rows[plan.digest] = (rows[below[0]] + rows[below[-1]]) / 2
    return rows


def _texts(node: Node, status: Status) -> tuple[str, str, str, str, str]:
    """What a box says: stage, digest, variants, tokens, and how it stands."""
    plan = node.plan
    span = f"{format_tokens(plan.start_tokens)} to {format_tokens(plan.end_tokens)}"
    return (
        plan.stage,
        plan.digest[:12],
        _listed(node.variants),
        f"{format_tokens(plan.tokens)} tokens, {span}",
        f"{status.value}{_origin(plan)}",
    )


def _listed(names: Sequence[str]) -> str:
    """As many of the names as the widest box holds, and how many more there are."""
    for shown in range(len(names), 0, -1):
        more = f" and {len(names) - shown} more" if shown < len(names) else ""
        text = ", ".join(names[:shown]) + more
        if text_width(text) <= _WIDEST - _STRIPE - 2 * _PADDING:
            break
    return text


def _origin(plan: RunPlan) -> str:
    if plan.parent is None:
        return ", from a Hugging Face folder" if plan.meaning["parent"] else ""
    return f", forks off {plan.parent.stage}" if _forks(plan) else ""


def _forks(plan: RunPlan) -> bool:
    return plan.parent is not None and plan.start_tokens < plan.parent.end_tokens


def _draw_edge(axes: Axes, parent: tuple[float, float], child: tuple[float, float], width: float, dashed: bool) -> None:
    """From the right of the parent's box to the left of the child's; both are given by their upper left corners."""
    start, end = (parent[0] + width, parent[1] + _HEIGHT / 2), (child[0], child[1] + _HEIGHT / 2)
    middle = (start[0] + end[0]) / 2
    bow = Path([start, (middle, start[1]), (middle, end[1]), end], [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
    style = (0, (4, 2)) if dashed else "solid"
    axes.add_patch(PathPatch(bow, facecolor="none", edgecolor=PALE, linewidth=1, linestyle=style))


def _draw_box(
    axes: Axes, corner: tuple[float, float], width: float, texts: Sequence[str], colour: str, name: str
) -> None:
    left, top = corner
    axes.add_patch(Rectangle(corner, width, _HEIGHT, facecolor="white", edgecolor=_EDGE, linewidth=0.8, gid=name))
    axes.add_patch(Rectangle(corner, _STRIPE, _HEIGHT, facecolor=colour, edgecolor="none"))
    for line, text in enumerate(texts):
        bold = line == 0
        shown = canvas.elided(text, width - _STRIPE - 2 * _PADDING, bold=bold)
        place = left + _STRIPE + _PADDING, top + 6 + line * LINE
        colour, weight = PALE if line == 1 else INK, "bold" if bold else "normal"
        axes.text(*place, canvas.plain(shown), color=colour, weight=weight, ha="left", va="top")


def _draw_track(axes: Axes, corner: tuple[float, float], width: float, plan: RunPlan, life_tokens: int) -> None:
    """A bar for the whole life of the family, and on it the part that the run trains."""
    left, top = corner[0] + _STRIPE + _PADDING, corner[1] + _HEIGHT - 9
    length = width - _STRIPE - 2 * _PADDING
    scale = length / life_tokens
    axes.add_patch(Rectangle((left, top), length, _TRACK, facecolor=_FAINT, edgecolor="none"))
    begin = left + plan.start_tokens * scale
    axes.add_patch(Rectangle((begin, top), plan.tokens * scale, _TRACK, facecolor=_BAR, edgecolor="none"))
