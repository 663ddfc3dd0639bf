"""Where tables are printed."""

from typing import TextIO

from rich.console import Console

_WIDE = 200


def console(stream: TextIO) -> Console:
    """As wide as the reader's window; wide enough for whole lines where nobody knows how wide that is."""
    return Console(file=stream, width=None if stream.isatty() else _WIDE, highlight=False)
