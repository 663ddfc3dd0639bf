"""Show the family tree and its arithmetic without running anything: the overrides of train, sweeps too."""

import sys

from tinyllama.config.app import command
from tinyllama.config.schema import RunConfig


@command
def main(config: RunConfig, overrides: list[str]) -> None:
    raise AssertionError("the plan launcher answers instead")


if __name__ == "__main__":
    sys.argv[1:1] = ["--multirun", "hydra/launcher=plan"]
    main()
