"""Tables look the same whether rich prints them or not."""

from io import StringIO

import pytest

from tinyllama.reporting import console
from tinyllama.reporting.console import print_table, table

ROWS = {
    "words and numbers": [("basic-12", "standard", "1.5T", "1"), ("  continual-34", "中文 café", "350B", "20,000")],
    "markup": [("basic", "[bold]a[/]", "1", "2")],
    "an emoji's name": [("basic", ":smile:", "1", "2")],
    "a cell of two lines": [("basic", "one\ntwo", "1", "2")],
    "a cell that is too long": [("basic", "word " * 60, "1", "2")],
    "nothing": [],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize("width", [40, 200])
def test_a_table_is_printed_as_rich_prints_it(monkeypatch, rows, width):
    monkeypatch.setattr(console, "_WIDE", width)
    texts = []
    for show in (print_table, lambda out, made: out.print(made)):
        made, out = table("run", "variants", right=("tokens", "steps")), console.console(StringIO())
        for row in rows:
            made.add_row(*row)
        show(out, made)
        texts.append(out.file.getvalue())
    assert texts[0] == texts[1]
