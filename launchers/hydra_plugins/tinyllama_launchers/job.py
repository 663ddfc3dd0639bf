"""What each rank of a SLURM job runs: `python -m hydra_plugins.tinyllama_launchers.job RUN/job`.

Light, as Hydra imports it whenever it looks for launchers.
"""

import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tinyllama import signals
from tinyllama.errors import ConfigError, DamageError, Stopped, StoppedForNow, TinyllamaError
from tinyllama.world import World

if TYPE_CHECKING:
    from tinyllama.checkpoint.layout import RunFolder


def main() -> None:
    """Train the run from its frozen configs. How it ended stands in END, for the job's script.

    A rank that stopped in order leaves with 0: srun would end those that are still saving if it left with another.
    """
    from tinyllama.checkpoint.layout import RunFolder  # not light
    from tinyllama.slurm.script import LEFT, REQUEUE

    folder = RunFolder(Path(sys.argv[1]).parent)
    signals.leave_at_once(
        quietly=not World.from_environment().is_main,
        note=lambda number: _note(folder, REQUEUE if number == signal.SIGUSR1 else LEFT),
    )
    try:
        _train(folder)
    except Stopped as stop:
        _note(folder, REQUEUE if isinstance(stop, StoppedForNow) else LEFT)
        if World.from_environment().is_main:
            print(stop, file=sys.stderr)
    except TinyllamaError as error:
        if error.exit_code != TinyllamaError.exit_code:  # what another life would only find again
            folder.job_end.write_text(str(error.exit_code), encoding="utf-8")
        if World.from_environment().is_main or not isinstance(error, ConfigError):  # which all ranks find
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    finally:
        signals.ignore()


def _train(folder: "RunFolder") -> None:
    from tinyllama.data.inventory import take_inventory
    from tinyllama.planning.plan import make_plan
    from tinyllama.planning.tree import Job
    from tinyllama.slurm.record import read_record
    from tinyllama.slurm.snapshot import frozen_path
    from tinyllama.train import train

    record, path = read_record(folder), frozen_path(folder)
    if record is None:
        raise DamageError(f"{folder.job_record} is missing; submit the run again")
    plan = make_plan(path, take_inventory(path))
    if plan.digest != record.digest:
        raise ConfigError(
            f"{plan.name} is what the submitted configuration means now, and {folder.path.name} what it meant when job "
            f"{record.id} was submitted: corpora were prepared anew since; submit again"
        )
    train(Job(record.overrides, path, plan, continued=True), record.variants)


def _note(folder: "RunFolder", word: str) -> None:
    """Write whether the job is to be queued again. The first word counts: when a rank has left, srun ends the others
    by TERM, as a person does who wants the job to end.
    """
    with suppress(FileExistsError), folder.job_end.open("x", encoding="utf-8") as file:
        file.write(word)


if __name__ == "__main__":
    main()
