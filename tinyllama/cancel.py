"""End all jobs of a family in SLURM's queue: `python -m tinyllama.cancel family=demo`.

Jobs that wait are cancelled; those that run are asked to save and leave, and are not queued again. Training goes on
from there with the command that began it.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tinyllama.checkpoint.layout import RunFolder
from tinyllama.config.app import command
from tinyllama.config.schema import Format, RunConfig
from tinyllama.slurm import client
from tinyllama.slurm.record import live_jobs

WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD")


@dataclass(frozen=True)
class Ended:
    """A job, and what was done about it."""

    id: str
    run: str
    state: str
    action: str


@command
def main(config: RunConfig, overrides: list[str]) -> None:
    client.require_available()
    ended = _end(Path(config.paths.runs) / config.family)
    if config.format is Format.json:
        print(json.dumps({"family": config.family, "jobs": [asdict(job) for job in ended]}))
    elif ended:
        _print(ended)
    else:
        print(f"No job of family={config.family} (paths.runs={config.paths.runs}) is in the queue", file=sys.stderr)


def _end(family: Path) -> list[Ended]:
    """Cancel what waits before what runs is asked to leave: a child that waits must not begin then."""
    folders = {path.name: RunFolder(path) for path in sorted(family.glob("*/")) if path.is_dir()}
    jobs = live_jobs(folders)
    waiting = [job for job in jobs.values() if job.state in WAITING]
    client.cancel(job.id for job in waiting)
    running = {name: job for name, job in jobs.items() if job not in waiting}
    for name in running:  # so that nobody takes it for one that goes on
        folders[name].job_leaving.touch()
    client.stop(job.id for job in running.values())
    return [
        Ended(job.id, name, job.state, "asked to save and leave" if name in running else "cancelled")
        for name, job in jobs.items()
    ]


def _print(ended: Sequence[Ended]) -> None:
    from tinyllama.reporting.console import console, table

    rows = table("run", "job", "state", "action")
    for job in ended:
        rows.add_row(job.run, job.id, job.state.lower(), job.action)
    console(sys.stdout).print(rows)


if __name__ == "__main__":
    main()
