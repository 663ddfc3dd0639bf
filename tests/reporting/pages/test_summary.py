"""The report in some ten lines."""

from io import StringIO

import pytest

from tinyllama.reporting.pages.runs import read_runs
from tinyllama.reporting.pages.summary import print_summary

pytestmark = pytest.mark.xdist_group("page")  # one family for all of them


def test_a_line_tells_a_runs_losses_and_what_it_reaches_where_it_was_asked(family):
    stream = StringIO()
    print_summary(read_runs(family.runs, "demo"), stream)
    head, *rows, total = stream.getvalue().splitlines()
    assert head.split()[-2:] == ["commonsense", "%"]
    asked = {tuple(row.split()[0].split("-")[:1] + row.split()[1:2]): row.split()[-1] for row in rows}
    assert asked["basic", "standard"] == "39.00"
    assert asked["cooldown", "math_code"] == "25.00"
    assert asked["continual", "chinese"] == "39.25"
    known = read_runs(family.runs, "demo").runs[1]
    assert (
        rows[1].split()[-1] == f"{known.steps.last('validation/skypile'):.3f}"
    )  # no average: its parent alone was asked
    assert total.startswith("6 of 7 runs done: ")
