"""Prepare raw corpora for training: `python -m tinyllama.prepare corpus=skypile`, or all that are configured."""

import json
import sys
from collections.abc import Sequence
from time import perf_counter
from typing import Any

from tinyllama.config.app import command, setting_of
from tinyllama.config.schema import CorpusConfig, Format, RunConfig
from tinyllama.errors import unknown
from tinyllama.units import format_bytes, format_seconds, format_tokens


@command
def main(config: RunConfig, overrides: list[str]) -> None:
    from tinyllama.data.prepare import prepare_corpus
    from tinyllama.data.reporter import shown

    summaries = []
    with shown() as progress:
        for corpus in _chosen(config, overrides):
            began = perf_counter()
            manifest = prepare_corpus(corpus, config.tokenizer, config.model.seq_len, config.paths.data, progress)
            summaries.append(manifest.summary(perf_counter() - began))
    if config.format is Format.json:
        print(json.dumps(summaries[0] if len(summaries) == 1 else summaries))
    else:
        _print_table(summaries)


def _chosen(config: RunConfig, overrides: list[str]) -> list[CorpusConfig]:
    """The corpora that `corpus=...` names; all configured ones, which mixtures bring along, when it is not given."""
    choices = [override.split("=", 1)[1].strip("[]") for override in overrides if setting_of(override) == "corpus"]
    names = [name.strip() for name in choices[-1].split(",")] if choices else list(config.corpora)
    for name in names:
        if name not in config.corpora:
            raise unknown("corpus", name, config.corpora)
    return [config.corpora[name] for name in names]


def _print_table(summaries: Sequence[dict[str, Any]]) -> None:
    from rich.table import Table

    from tinyllama.reporting.console import console

    table = Table("corpus", "documents", "skipped", "tokens", "samples", "shards", "size", "time", box=None)
    for row in summaries:
        table.add_row(
            row["corpus"],
            f"{row['documents']:,}",
            f"{sum(row['skipped'].values()):,}",
            format_tokens(row["tokens"]),
            f"{row['samples']:,}",
            f"{row['shards']:,}",
            format_bytes(row["bytes"]),
            format_seconds(row["seconds"]),
        )
    console(sys.stdout).print(table)


if __name__ == "__main__":
    main()
