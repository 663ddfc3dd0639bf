"""Show the family tree and its arithmetic without running anything: the overrides of train, sweeps too."""

import sys
from functools import partial

from tinyllama.config.app import command
from tinyllama.config.schema import RunConfig


@partial(command, sweeps=True)
def _show(config: RunConfig, overrides: list[str]) -> None:
    raise AssertionError("launchers/hydra_plugins/tinyllama_launchers/plan.py answers instead")


def main() -> None:
    """A plan is a sweep that another launcher shows: one job, or a whole family."""
    arguments = sys.argv[1:]
    # Hydra reads overrides in one row only: ours goes where the person's begin.
    first = next((at for at, text in enumerate(arguments) if "=" in text and text[0] != "-"), len(arguments))
    sys.argv[1:] = ["--multirun", *arguments[:first], "hydra/launcher=plan", *arguments[first:]]
    _show()


if __name__ == "__main__":
    main()
