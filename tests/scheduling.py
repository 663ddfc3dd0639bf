"""The order in which pytest's workers take the tests: groups that stay on one worker, the longest first.

A group is what the mark `xdist_group` in a module names, otherwise the module. durations.json holds the seconds of
each module; `python tests/scheduling.py REPORT.xml` writes it from a JUnit report of a whole run.
"""

import json
import os
import re
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest
from xdist.scheduler import LoadScopeScheduling

DURATIONS = Path(__file__).with_name("durations.json")
ROOT = Path(__file__).parents[1]
_MARK = re.compile(r'xdist_group\("([^"]+)"\)')


def number_of_workers() -> int:
    """One more than there are CPUs, because the group of the SLURM cluster mostly waits."""
    return len(os.sched_getaffinity(0)) + 1


class GroupScheduling(LoadScopeScheduling):
    """Gives a group to the next idle worker, in the order of the collection.

    It replaces xdist's own `loadgroup`, which writes an attribute of the tests that pytest 9 does not read.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(module_of(nodeid))


def arrange(items: list[pytest.Item]) -> None:
    """Sort the tests by the recorded seconds of their groups, the longest first; in place."""
    seconds = json.loads(DURATIONS.read_text(encoding="utf-8"))
    groups = defaultdict[str, list[pytest.Item]](list)
    lengths = defaultdict[str, float](float)
    for module in {module_of(item.nodeid) for item in items}:
        lengths[group_of(module)] += seconds.get(module, 0.0)
    for item in items:
        groups[group_of(module_of(item.nodeid))].append(item)
    items[:] = [item for group in sorted(groups, key=lambda name: (-lengths[name], name)) for item in groups[group]]


def module_of(nodeid: str) -> str:
    return nodeid.partition("::")[0].removesuffix(".py").replace("/", ".")


@cache
def group_of(module: str) -> str:
    """The group that a module's mark names, read from its text: the process that schedules imports no tests."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    named = _MARK.search(path.read_text(encoding="utf-8"))
    return named[1] if named else module


def seconds_by_module(report: Path) -> dict[str, float]:
    """Seconds of each module with its fixtures, from a JUnit report."""
    found = defaultdict[str, float](float)
    for case in ElementTree.parse(report).iter("testcase"):
        found[case.get("classname", "")] += float(case.get("time", 0))
    return {module: round(total, 1) for module, total in sorted(found.items())}


if __name__ == "__main__":
    DURATIONS.write_text(json.dumps(seconds_by_module(Path(sys.argv[1])), indent=0) + "\n", encoding="utf-8")
