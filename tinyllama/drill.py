"""Kill a run again and again, let it go on, and see whether anything is lost: the overrides of train.

The declared stage is trained for a few steps, in a folder of its own: once undisturbed, once killed on the same ranks,
once killed and gone on with on others. Settings: drill.steps, drill.kills, drill.seed, drill.worlds, drill.keep.
"""

import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllama.config.app import command
from tinyllama.config.schema import Format, RunConfig
from tinyllama.errors import DamageError

if TYPE_CHECKING:
    from tinyllama.drilling.drill import Report


@command
def main(config: RunConfig, overrides: list[str]) -> None:
    from tinyllama.drilling.drill import Drill
    from tinyllama.drilling.rehearsal import rehearse

    rehearsal = rehearse(overrides)
    runs, keep = Path(config.paths.runs).absolute(), config.drill.keep
    runs.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".drill-", dir=runs))  # on the disk of the runs
    try:
        with _ended_in_order():
            report = Drill(rehearsal, scratch, _tell).run()
        keep = keep or not report.ok
    finally:
        if not keep:
            shutil.rmtree(scratch)
    if config.format is Format.json:
        print(json.dumps(_document(report, scratch if keep else None)))
    else:
        _print(report)
    sys.stdout.flush()
    kept = f"the drilled runs and their logs: {scratch}"
    wrong = [check for check in report.checks if not check.ok]
    if wrong:
        raise DamageError(f"{wrong[0].name}: {wrong[0].detail}\n{kept}")
    if keep:
        _tell(kept)


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM ends this process as an exception does: whoever cleans up is heard."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(text: str) -> None:
    print(f"drill: {text}", file=sys.stderr, flush=True)


def _document(report: "Report", folder: Path | None) -> dict[str, Any]:
    """As format=json prints it."""
    return {
        "ok": report.ok,
        "kills": report.kills,
        "worlds": sorted({life.placement.world for _, life in report.lives}),
        "max_loss_difference": report.max_loss_difference,
        "samples_equal": report.equal("samples"),
        "bitwise_equal": report.bitwise_equal,
        "chain_equal": report.equal("order"),
        "verified": report.equal("verify"),
        "repeatable": report.repeatable,
        "lives": [
            {
                "run": run,
                "world": life.placement.world,
                "micro_batch": life.placement.micro_batch,
                "signal": life.signal.name if life.signal else None,
                "during": life.during,
                "resumed_from_step": life.resumed_from_step,
                "at_step": life.at_step,
                "exit_code": life.code,
                "seconds": round(life.pace.whole, 1),
            }
            for run, life in report.lives
        ],
        "checks": [{"name": check.name, "ok": check.ok, "detail": check.detail} for check in report.checks],
        "folder": str(folder) if folder else None,
    }


def _print(report: "Report") -> None:
    from rich.markup import escape

    from tinyllama.reporting.console import console, table

    lives = table("run", "ended by", right=("ranks", "micro-batch", "from step", "to step", "seconds"))
    for run, life in report.lives:
        lives.add_row(
            run,
            f"{life.signal.name} during {life.during}" if life.signal else "",
            *(str(value) for value in (life.placement.world, life.placement.micro_batch)),
            *("-" if step is None else str(step) for step in (life.resumed_from_step, life.at_step)),
            f"{life.pace.whole:.1f}",
        )
    checks = table("check", "", "what was found")
    for check in report.checks:
        checks.add_row(check.name, "[green]ok[/]" if check.ok else "[bold red]differs[/]", escape(check.detail))
    out = console(sys.stdout)
    for each in (lives, "", checks):
        out.print(each)
    if not report.repeatable:
        print("\nThis machine does not compute the same bits twice, so states were compared by their losses.")
    if report.ok:
        print(f"\nNothing was lost. Kills: {report.kills}. Losses differ by at most {report.max_loss_difference:.2g}.")


if __name__ == "__main__":
    main()
