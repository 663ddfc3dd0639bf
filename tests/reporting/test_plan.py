"""What is said of a plan beside its tables."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tinyllama.checkpoint.layout import RunFolder
from tinyllama.config.schema import SlurmConfig
from tinyllama.planning.corpora import Corpus, Inventory
from tinyllama.planning.cost import Throughput
from tinyllama.planning.lints import Lint
from tinyllama.planning.plan import make_plan
from tinyllama.planning.tree import Job, grow
from tinyllama.reporting.plan import print_plan, print_plan_json, survey
from tinyllama.slurm.client import QueuedJob

SIZES = {"slimpajama": (64,) * 40, "starcoder": (64,) * 9, "proof_pile_2": (64,) * 7, "skypile": (50,) * 21}
PREPARED = Inventory({name: Corpus(name, f"of {name}", sizes) for name, sizes in SIZES.items()}, "of the tokenizer")
LINTS = (
    Lint("error", "memory", "cluster.micro_batch", "cluster.micro_batch=[64] is too much"),
    Lint("note", "rounded_tokens", "stage.tokens", "stage.tokens=1 is rounded"),
)
BESIDE = {"stage": "basic", "variants": ["one", "two"], "digest": "0" * 64, "run_dir": "runs/other", "tokens": 1000}


@pytest.fixture
def nodes(compose, tmp_path):
    overrides = ("+scale=demo", "stage=continual", f"paths.runs={tmp_path}")
    path = compose(*overrides)
    return grow([Job(overrides, path, make_plan(path, PREPARED))])


def plan_of(nodes, rate=None, **given):
    rate = Throughput(rate, "a stopwatch")
    return survey(nodes, {node.plan.digest: rate for node in nodes}, **given)


def checkpoint(node, tokens: int) -> None:
    folder = RunFolder.of(node.config.paths.runs, node.plan)
    folder.checkpoint(node.plan.start_tokens + tokens).mkdir(parents=True)
    Path(folder.identity).write_text("{}")


def test_lints_and_runs_under_the_same_names_follow_the_tables(nodes, capsys):
    print_plan(plan_of(nodes, lints=LINTS, beside=[BESIDE]))
    out = capsys.readouterr().out
    assert out.index("On disk under the same names") < out.index("runs/other") < out.index("error  memory")
    assert "cluster.micro_batch=[64] is too much" in out and "stage.tokens=1 is rounded" in out
    assert "one two" in out and "1K" in out


def test_a_plan_without_faults_does_not_speak_of_any(nodes, capsys):
    print_plan(plan_of(nodes))
    out = capsys.readouterr().out
    assert "On disk" not in out and "level" not in out and "Shared" not in out and "sizes in conf/" not in out


def test_the_context_of_each_stage_is_told_where_they_differ(compose, capsys):
    for override, told in ((), False), (("stage.seq_len=256",), True):
        path = compose("+scale=demo", "stage=continual", *override)
        print_plan(plan_of(grow([Job((), path, make_plan(path, PREPARED))])))
        table = capsys.readouterr().out.partition("corpus")[0]
        assert ("context" in table) == told
        basic, continual = (line.split() for line in table.splitlines() if "slimpajama" in line)
        assert (basic[-1], continual[-1]) == ("128", "256") if told else "128" not in table


def test_the_document_carries_all_of_it(nodes, capsys):
    print_plan_json(plan_of(nodes, lints=LINTS, beside=[BESIDE]))
    document = json.loads(capsys.readouterr().out)
    assert document["beside"] == [BESIDE]
    assert [(lint["level"], lint["name"], lint["setting"]) for lint in document["lints"]] == [
        ("error", "memory", "cluster.micro_batch"),
        ("note", "rounded_tokens", "stage.tokens"),
    ]
    assert document["lints"][0]["message"] == LINTS[0].message


def test_what_is_not_known_is_a_question_mark_and_gets_no_sentence(nodes, capsys):
    print_plan(plan_of(nodes))
    out = capsys.readouterr().out
    assert "?" in out and "cost" not in out
    assert "2 runs of 504K tokens in all.\n" in out


def test_a_half_trained_stage_counts_from_its_last_checkpoint(nodes, capsys):
    basic, continual = nodes
    RunFolder.of(basic.config.paths.runs, basic.plan).path.mkdir(parents=True)
    RunFolder.of(basic.config.paths.runs, basic.plan).done.write_text("{}")
    checkpoint(continual, 8192)
    checkpoint(continual, 40_960)
    plan = plan_of(nodes, rate=1.0)
    assert [document["status"] for document in plan.documents] == ["done", "partial"]
    assert continual.plan.tokens == 118_784
    assert plan.totals.gpu_hours_remaining == pytest.approx((continual.plan.tokens - 40_960) / 3600)
    print_plan(plan)
    assert "21.6 GPU-hours are left to train" in capsys.readouterr().out


def test_cost_has_a_column_where_some_cluster_has_a_price(nodes, capsys):
    priced = [
        replace(node, config=replace(node.config, cluster=replace(node.config.cluster, price_per_gpu_hour=3.0)))
        for node in nodes
    ]
    plan = plan_of(priced, rate=10.0)
    assert plan.totals.cost == pytest.approx(3 * plan.totals.gpu_hours)
    print_plan(plan)
    out = capsys.readouterr().out
    assert "cost" in out and f"{plan.documents[0]['time']['cost']:.3g}" in out


def test_what_slurm_has_is_shown_with_its_job_and_the_rest_as_it_stands_on_disk(nodes, capsys):
    basic, continual = nodes
    RunFolder.of(basic.config.paths.runs, basic.plan).path.mkdir(parents=True)
    RunFolder.of(basic.config.paths.runs, basic.plan).done.write_text("{}")
    jobs = {continual.plan.digest: QueuedJob("12", "continual", "PENDING", "Dependency")}
    plan = plan_of(nodes, jobs=jobs)
    assert plan.documents[0]["job"] is None
    assert plan.documents[1]["job"] == {"id": "12", "state": "PENDING", "reason": "Dependency"}
    assert plan.documents[1]["status"] == "absent"
    print_plan(plan)
    out = capsys.readouterr().out
    assert "queued (job 12)" in out and "done" in out and "absent" not in out


def test_a_sentence_tells_how_many_jobs_a_stage_takes_that_is_longer_than_the_limit_of_one(nodes, capsys):
    slurm = SlurmConfig(time_hours=2)
    limited = [
        replace(node, config=replace(node.config, cluster=replace(node.config.cluster, slurm=slurm))) for node in nodes
    ]
    hours = [node.plan.tokens / 10 / 3600 for node in nodes]
    assert hours == pytest.approx([10.7, 3.3], abs=0.05)
    plan = plan_of(limited, rate=10.0)
    assert [document["time"]["jobs"] for document in plan.documents] == [6, 2]
    print_plan(plan)
    out = capsys.readouterr().out
    assert "Jobs in a row under SLURM's limit of 2 hours, each requeued: about 6 for basic, 2 for continual." in out
    print_plan(plan_of(nodes, rate=10.0))
    assert "SLURM" not in capsys.readouterr().out


def test_stages_that_send_the_same_are_told_together_and_one_rank_tells_nothing(nodes, capsys):
    def told(**cluster) -> list[str]:
        placed = [replace(node, config=replace(node.config, cluster=replace(node.config.cluster, **cluster)))
                  for node in nodes]  # fmt: skip
        print_plan(plan_of(placed, rate=1000.0))
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("Each rank sends")]

    assert told(processes=1) == []
    (line,) = told(processes=2)
    assert line.startswith("Each rank sends in a step of basic, continual: 0.0") and line.endswith(" GB by ZeRO 1.")
    (line,) = told(processes=2, node_gb_per_second=1.0)
    assert "% of its time by ZeRO 1." in line
