"""Prove a run from what it left on disk, up to the root: `python -m tinyllama.verify +variant=chinese stage=continual`.

With run=DIRECTORY another run than the one that the settings declare; with contains=CORPUS:SAMPLE also whether, when
and how often it was trained on that sample.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyllama.checkpoint.layout import RunFolder, Status
from tinyllama.config.app import command, compose_path
from tinyllama.config.schema import Format, RunConfig
from tinyllama.errors import ConfigError, DamageError
from tinyllama.proof.examination import Check, Examination


@command
def main(config: RunConfig, overrides: list[str]) -> None:
    from tinyllama.data.reporter import shown
    from tinyllama.proof.checks import examine
    from tinyllama.proof.contains import sightings
    from tinyllama.proof.record import read_records

    folder, examination = _folder(config, overrides), Examination()
    records = read_records(folder, examination)
    checks, answer = examination.checks, None
    if all(check.ok for check in checks):
        answer = sightings(records, config.contains) if config.contains else None
        with shown() as tell:
            checks += examine(records, tell)
    if config.format is Format.json:
        known = bool(records) and records[-1].folder == folder
        print(json.dumps(_document(records[-1].plan.digest if known else None, checks, answer)))
    else:
        _print(checks, answer)
    wrong = [check for check in checks if not check.ok]
    if wrong:
        sys.stdout.flush()
        raise DamageError(f"{len(wrong)} of {len(checks)} checks failed; {wrong[0].name}: {wrong[0].detail}")


def _folder(config: RunConfig, overrides: list[str]) -> RunFolder:
    """The run's directory: the one that was named, or that of the declared run."""
    if config.run is not None:
        folder = RunFolder(Path(config.run).absolute())
        if folder.status is Status.absent and not folder.checkpoints.is_dir():
            raise ConfigError(f"run={config.run} is not the directory of a run: it has no {folder.identity.name}")
        return folder
    from tinyllama.data.inventory import take_inventory
    from tinyllama.planning.plan import make_plan

    path = compose_path(overrides)
    plan = make_plan(path, take_inventory(path))
    folder = RunFolder.of(config.paths.runs, plan)
    if folder.status is Status.absent:
        others = sorted(str(other) for other in folder.path.parent.glob(f"{plan.stage}-*"))
        remedy = f"; name one that stands: run={' or run='.join(others)}" if others else ""
        raise ConfigError(
            f"stage={plan.stage} of variant={config.variant} has not been trained: no {folder.path}{remedy}"
        )
    return folder


def _document(digest: str | None, checks: Sequence[Check], answer: Mapping[str, Any] | None) -> dict[str, Any]:
    """As format=json prints it; digest is null where the run's own record does not give it."""
    ok = all(check.ok for check in checks)
    document = {"ok": ok, "digest": digest, "checks": [asdict(check) for check in checks]}
    return document | ({"contains": answer} if answer is not None else {})


def _print(checks: Sequence[Check], answer: Mapping[str, Any] | None) -> None:
    from rich.markup import escape
    from rich.table import Table

    from tinyllama.reporting.console import console

    table = Table("check", "", "what was found", box=None, header_style="bold")
    for check in checks:
        verdict = "[green]ok[/]" if check.ok else "[bold red]differs[/]"
        table.add_row(check.name, verdict, escape(check.detail))
    console(sys.stdout).print(table)
    if answer is not None:
        since = (
            f" since {known:,} tokens of life, where it was adopted" if (known := answer["known_from_tokens"]) else ""
        )
        print(f"\n{answer['corpus']}:{answer['sample']} was trained on {_times(answer['times'])}{since}")
        for each in answer["seen"]:
            print(
                f"  {each['stage']}-{each['digest'][:12]}, step {each['step']:,}, until {each['tokens']:,} tokens of "
                f"life: draw {each['draw']:,} of the corpus"
            )


def _times(count: int) -> str:
    return {0: "never", 1: "once"}.get(count, f"{count} times")


if __name__ == "__main__":
    main()
