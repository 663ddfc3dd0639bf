"""Where tables are printed."""

from collections.abc import Sequence
from typing import TextIO

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
