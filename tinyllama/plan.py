"""Show the family tree and its arithmetic without running anything: the overrides of train, sweeps too."""

import sys

from tinyllama.config.app import command
from tinyllama.config.schema import RunConfig


@command
def _show(config: RunConfig, overrides: list[str]) -> None:
    raise AssertionError("launchers/hydra_plugins/tinyllama_launchers/plan.py answers instead")


def main() -> None:
    """A plan is a sweep that another launcher shows: one job, or a whole family."""
    sys.argv[1:1] = ["--multirun", "hydra/launcher=plan"]
    _show()


if __name__ == "__main__":
    main()
