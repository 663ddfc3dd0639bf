"""Where tables are printed."""

from collections.abc import Sequence
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

_WIDE = 200


def console(stream: TextIO) -> Console:
    """As wide as the reader's window; wide enough for whole lines where nobody knows how wide that is."""
    return Console(file=stream, width=None if stream.isatty() else _WIDE, highlight=False)


def table(name: str, *left: str, right: Sequence[str] = ()) -> Table:
    """Without lines, by its headings. Words on the left fold where the window ends, numbers stand on the right.

    The first column, by which people copy names, is never folded.
    """
    columns = Table(box=None, header_style="bold", pad_edge=False)
    columns.add_column(name, no_wrap=True)
    for heading in left:
        columns.add_column(heading, overflow="fold")
    for heading in right:
        columns.add_column(heading, justify="right", no_wrap=True)
    return columns


def print_table(out: Console, rows: Table) -> None:
    """Print what `table` made. Rich takes a millisecond for each row, so where there is no style it is not asked."""
    lines = None if out.is_terminal else _plain_lines(rows, out.width)
    if lines is None:
        out.print(rows)
    else:
        out.file.write("".join(f"{line}\n" for line in lines))


def _plain_lines(rows: Table, width: int) -> list[str] | None:
    """The lines of a table whose cells fit on them; None where rich has more to do than to align them."""
    columns = []
    for column in rows.columns:
        cells = [column.header, *column.cells]
        if not all(isinstance(cell, str) and not _SPECIAL.intersection(cell) for cell in cells):
            return None
        sizes = [cell_len(str(cell)) for cell in cells]
        widest, before = max(sizes), column.justify == "right"
        fills = [" " * (widest - size) for size in sizes]
        columns.append(
            [f"{fill}{cell}" if before else f"{cell}{fill}" for cell, fill in zip(cells, fills, strict=True)]
        )
    lines = ["  ".join(cells) for cells in zip(*columns, strict=True)]
    return None if cell_len(lines[0]) > width else lines


_SPECIAL = frozenset("[]\\:\n\r\t")
"""Letters of markup, emoji and line ends."""
