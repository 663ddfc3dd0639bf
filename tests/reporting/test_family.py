"""What became of a family, on a narrow terminal."""

import json

import pytest

from tinyllama.checkpoint.layout import RunFolder
from tinyllama.planning.corpora import Corpus, Inventory
from tinyllama.planning.plan import make_plan
from tinyllama.planning.tree import Job, grow
from tinyllama.reporting import console
from tinyllama.reporting.family import End, Outcome, print_outcomes

NAMES = ("slimpajama", "starcoder", "proof_pile_2", "skypile")
PREPARED = Inventory({name: Corpus(name, f"of {name}", (64,) * 40) for name in NAMES}, "of the tokenizer")
LOSSES = dict.fromkeys(NAMES, 12.3456)


@pytest.fixture
def nodes(compose, tmp_path):
    asked = [(f"+variant={variant}", f"stage={stage}") for variant in ("standard", "math_code", "chinese")
             for stage in ("basic", "continual", "cooldown")]  # fmt: skip
    paths = {job: compose("+scale=demo", f"paths.runs={tmp_path}", *job) for job in asked}
    return grow(Job(job, path, make_plan(path, PREPARED)) for job, path in paths.items())


def test_each_run_stands_whole_on_a_hundred_columns_and_reasons_follow_the_table(nodes, monkeypatch, capsys):
    monkeypatch.setattr(console, "_WIDE", 100)
    outcomes = {node.plan.digest: Outcome(End.done) for node in nodes}
    for node in nodes:
        folder = RunFolder.of(node.config.paths.runs, node.plan)
        folder.path.mkdir(parents=True)
        folder.done.write_text(json.dumps({"validation": LOSSES}))
    *_, failed, held_up = nodes
    folder = RunFolder.of(failed.config.paths.runs, failed.plan)
    folder.done.unlink()
    outcomes[failed.plan.digest] = Outcome(End.failed, "it was killed by SIGKILL", 137, folder.log)
    outcomes[held_up.plan.digest] = Outcome(End.not_started, f"{failed.plan.name} failed")
    print_outcomes(nodes, outcomes)
    lines = capsys.readouterr().err.splitlines()
    assert not any("…" in line for line in lines)
    table, reasons = lines[:-3], lines[-3:]
    assert max(map(len, table)) <= 100
    for node in nodes:
        (row,) = [line for line in table if line.strip().startswith(f"{node.plan.name} ")]
        assert f"  {outcomes[node.plan.digest].end.value}  " in row
        assert row.count("12.346") == (0 if node is failed else 4)
    assert reasons == [
        f"{failed.plan.name} failed: it was killed by SIGKILL",
        f"  log: {folder.log}",
        f"{held_up.plan.name} not started: {failed.plan.name} failed",
    ]
