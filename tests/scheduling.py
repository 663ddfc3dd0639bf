"""The order in which pytest's workers take the tests: groups that stay on one worker, the longest first.

A group is what a mark `xdist_group` names, otherwise a module. durations.json holds the seconds of each module;
`python tests/scheduling.py REPORT.xml` writes it from a JUnit report of a whole run.
"""

import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import pytest

DURATIONS = Path(__file__).with_name("durations.json")


def number_of_workers() -> int:
    """One more than there are CPUs, because the group of the SLURM cluster mostly waits."""
    return len(os.sched_getaffinity(0)) + 1


def join_group(item: pytest.Item) -> None:
    """Have a test that names no group join that of its module."""
    if item.get_closest_marker("xdist_group") is None:
        item.add_marker(pytest.mark.xdist_group(module_of(item)))


def arrange(items: list[pytest.Item]) -> None:
    """Sort groups by the recorded seconds of their modules, the longest first; in place."""
    seconds = json.loads(DURATIONS.read_text(encoding="utf-8"))
    groups = defaultdict[str, list[pytest.Item]](list)
    for item in items:
        mark = item.get_closest_marker("xdist_group")
        assert mark is not None
        groups[mark.args[0]].append(item)

    def length(group: str) -> float:
        return sum(seconds.get(module, 0.0) for module in {module_of(item) for item in groups[group]})

    items[:] = [item for group in sorted(groups, key=lambda group: (-length(group), group)) for item in groups[group]]


def module_of(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0].removesuffix(".py").replace("/", ".")


def seconds_by_module(report: Path) -> dict[str, float]:
    """Seconds of each module with its fixtures, from a JUnit report."""
    found = defaultdict[str, float](float)
    for case in ElementTree.parse(report).iter("testcase"):
        found[case.get("classname", "")] += float(case.get("time", 0))
    return {module: round(total, 1) for module, total in sorted(found.items())}


if __name__ == "__main__":
    DURATIONS.write_text(json.dumps(seconds_by_module(Path(sys.argv[1])), indent=0) + "\n", encoding="utf-8")
