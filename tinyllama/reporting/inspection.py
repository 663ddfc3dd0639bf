"""What `prepare` tells: what became of corpora, what was checked of them, and a sample of one."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.text import Text

from tinyllama.data.passage import Passage
from tinyllama.data.versions import version_name
from tinyllama.proof.examination import Check
from tinyllama.reporting.console import console, table
from tinyllama.units import format_bytes, format_seconds, format_tokens

_BAD_ROWS = 5
"""Of each corpus on the terminal; the manifest names more."""


def print_prepared(summaries: Sequence[Mapping[str, Any]]) -> None:
    """A row for each corpus; below it what was left out of it, and what is unusual."""
    rows = table("corpus", right=("documents", "skipped", "tokens", "samples", "shards", "size", "time"))
    for each in summaries:
        rows.add_row(
            each["corpus"],
            f"{each['documents']:,}",
            f"{sum(each['skipped'].values()):,}",
            format_tokens(each["tokens"]),
            f"{each['samples']:,}",
            f"{each['shards']:,}",
            format_bytes(each["bytes"]),
            format_seconds(each["seconds"]),
        )
    out = console(sys.stdout)
    out.print(rows)
    for each in summaries:
        for what, counts in (("skipped", each["skipped"]), ("kept, though unusual", each["noted"])):
            if counts:
                told = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
                out.print(escape(f"{each['corpus']}: {what}: {told}"))
        for row in each["bad_rows"][:_BAD_ROWS]:
            out.print(escape(f"  {row}"))
        if len(each["bad_rows"]) > _BAD_ROWS:
            out.print(escape(f"  and more, which the manifest of {each['corpus']} names"))


def check_document(corpus: str, fingerprint: str, checks: Sequence[Check]) -> dict[str, Any]:
    """As format=json prints it."""
    ok = all(check.ok for check in checks)
    return {"ok": ok, "corpus": corpus, "fingerprint": fingerprint, "checks": [asdict(check) for check in checks]}


def print_checks(documents: Sequence[Mapping[str, Any]]) -> None:
    rows = table("corpus", "check", "", "what was found")
    for each in documents:
        for number, check in enumerate(each["checks"]):
            name = version_name(each["corpus"], each["fingerprint"]) if number == 0 else ""
            verdict = "[green]ok[/]" if check["ok"] else "[bold red]wrong[/]"
            rows.add_row(name, check["name"], verdict, escape(check["detail"]))
    console(sys.stdout).print(rows)


def passage_document(passage: Passage) -> dict[str, Any]:
    """As format=json prints it."""
    return {
        "corpus": passage.corpus,
        "fingerprint": passage.fingerprint,
        "split": passage.split,
        "sample": passage.sample,
        "shard": passage.shard,
        "place": passage.place,
        "tokens": passage.tokens,
        "byte_tokens": passage.bytes,
        "unknown_tokens": passage.unknown,
        "documents": [
            {**asdict(each.excerpt), "tokens": len(each.tokens), "ids": list(each.tokens), "text": each.text}
            for each in passage.fragments
        ],
    }


def print_passage(passage: Passage) -> None:
    """The sample's text, a line before each document that tells where it came from."""
    out = console(sys.stdout)
    out.print(
        f"[bold]{version_name(passage.corpus, passage.fingerprint)}[/], {passage.split} sample {passage.sample:,}: "
        f"{passage.tokens:,} tokens of {_count(len(passage.fragments), 'document')}, "
        f"{_share(passage.bytes, passage.tokens)} spelled in bytes, {_share(passage.unknown, passage.tokens)} unknown; "
        f"sample {passage.place} of {passage.shard}"
    )
    for fragment in passage.fragments:
        each = fragment.excerpt
        begun, ended = each.begin > 0, each.end < each.document_tokens
        part = f"tokens {each.begin:,} to {each.end - 1:,} of {each.document_tokens:,}"
        told = part if begun or ended else f"all {each.document_tokens:,} tokens"
        out.print(Text(f"── {each.file}:{each.row} ({each.source_set}), {told}", style="bold"))
        out.print(Text(f"{'… ' if begun else ''}{fragment.text}{' …' if ended else ''}"))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2g} %"
