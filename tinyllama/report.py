"""Show a family in one HTML file that needs no network: `python -m tinyllama.report +scale=demo out=FILE.html`.

It is made from the directories of the family's runs, or with report.source=mlflow from what the tracking store has.
"""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tinyllama import __version__
from tinyllama.checkpoint.files import why_not_written, write_durably
from tinyllama.config.app import command
from tinyllama.config.schema import ReportSource, RunConfig
from tinyllama.errors import ConfigError

if TYPE_CHECKING:
    from tinyllama.reporting.pages.family import Family


@command
def main(config: RunConfig, overrides: list[str]) -> None:
    from tinyllama.reporting.pages.page import page
    from tinyllama.reporting.pages.summary import print_summary

    runs = Path(config.paths.runs)
    family = _from_store(config, runs) if config.report.source is ReportSource.mlflow else _from_runs(config, runs)
    out = Path(config.out) if config.out is not None else runs / config.family / "report.html"
    if out.is_dir():
        raise ConfigError(f"out={config.out} is a folder; name the file to be written, as out={out / 'report.html'}")
    text = page(family, f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, by tinyllama {__version__}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_durably(out, text)
    except OSError as error:
        raise ConfigError(f"out={out} cannot be written: {why_not_written(error, out.parent)}") from error
    print_summary(family, sys.stdout)
    if config.tracking.name == "mlflow":
        print(f"MLflow's store: {config.tracking.uri or f'sqlite:///{runs.absolute()}/mlflow.db'}")
    print(f"report: {out.absolute()}")


def _from_runs(config: RunConfig, runs: Path) -> "Family":
    from tinyllama.reporting.pages.runs import read_runs

    return read_runs(runs, config.family)


def _from_store(config: RunConfig, runs: Path) -> "Family":
    from tinyllama.lineage import histories
    from tinyllama.reporting.pages.store import runs_of_store

    return runs_of_store(config.family, histories(config.tracking, runs, config.family), config.tracking)


if __name__ == "__main__":
    main()
