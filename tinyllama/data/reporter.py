"""How long work tells how far it is: bars on terminals, lines elsewhere, always on standard error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Reporter = Callable[[str, int, int], None]
"""Called with what is being done, how many of its steps are done, and of how many."""


def silent(task: str, done: int, total: int) -> None:
    """For callers that nobody watches."""


@contextmanager
def shown() -> Iterator[Reporter]:
    """A Reporter for people, for as long as the context lasts."""
    if not sys.stderr.isatty():
        yield _line
        return
    from rich.console import Console
    from rich.progress import Progress, TaskID

    with Progress(console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def show(task: str, done: int, total: int) -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(task)
            bars.update(tasks[task], completed=done, total=total)

        yield show


def _line(task: str, done: int, total: int) -> None:
    if done == total:
        print(task, file=sys.stderr)
