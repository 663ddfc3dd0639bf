"""Prove a run from what it left on disk, up to the root: `python -m tinyllama.verify +variant=chinese stage=continual`.

With run=DIRECTORY another run than the one that the settings declare; with contains=CORPUS:SAMPLE also whether, when
and how often it was trained on that sample.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tinyllama.checkpoint.choice import find_run
from tinyllama.config.app import command
from tinyllama.config.schema import Format, RunConfig
from tinyllama.errors import DamageError
from tinyllama.proof.examination import Check, Examination


@command
def main(config: RunConfig, overrides: list[str]) -> None:
    from tinyllama.data.reporter import shown
    from tinyllama.proof.checks import examine
    from tinyllama.proof.contains import sightings
    from tinyllama.proof.record import read_records

    folder, examination = find_run(config, overrides), Examination()
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
