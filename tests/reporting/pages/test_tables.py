"""The report's tables, as HTML."""

import re

import pytest

from tests.reporting.pages.conftest import FAMILY
from tinyllama.reporting.pages.runs import read_runs
from tinyllama.reporting.pages.tables import evaluation_of_family


@pytest.mark.parametrize("questions, told", [(40, ["basic +2.00"]), (30, [])])
def test_values_are_compared_where_the_same_was_asked_and_only_there(writer, questions, told):
    writer.plan(*FAMILY[:2])
    writer.write("basic standard")
    writer.write("continual standard")
    writer.evaluate("basic standard", {"piqa": 50.0}, {}, questions=40)
    writer.evaluate("continual standard", {"piqa": 52.0}, {}, questions=questions)
    (row,) = re.findall(r"<tr><th[^>]*>piqa</th>.*?</tr>", evaluation_of_family(read_runs(writer.runs, "demo")))
    assert re.findall(r"<small>(.*?)</small>", row) == told
