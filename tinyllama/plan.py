"""Show the family tree and its arithmetic without running anything: the overrides of train, sweeps too."""

from functools import partial

from tinyllama.config.app import command
from tinyllama.config.schema import RunConfig


@partial(command, always="plan")  # a plan is a sweep that a launcher shows: one job, or a whole family
def main(config: RunConfig, overrides: list[str]) -> None:
    raise AssertionError("launchers/hydra_plugins/tinyllama_launchers/plan.py answers instead")


if __name__ == "__main__":
    main()
