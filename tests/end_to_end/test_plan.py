"""`python -m tinyllama.plan`: the tree as one JSON document, or as a table."""

import json

import pytest

from tests.end_to_end.conftest import copy_runs, run_folder
from tinyllama.reporting import console

FAMILY = ["+variant=standard,math_code,chinese", "stage=basic,continual,cooldown"]


def test_the_real_family_plans_as_seven_nodes_and_has_no_cost_where_nothing_is_known(run, tmp_path):
    result = run("plan", *FAMILY, "format=json", f"paths.data={tmp_path}", f"paths.runs={tmp_path / 'runs'}")
    assert result.code == 0
    document = json.loads(result.out)
    nodes, totals = document["nodes"], document["totals"]
    assert totals["nodes"] == len(nodes) == 7
    assert totals["gpu_hours"] is totals["gpu_hours_saved"] is totals["cost"] is None
    assert [node["stage"] for node in nodes].count("basic") == 1
    by_stage = {node["stage"]: node for node in nodes}
    assert [round(by_stage[stage]["tokens"] / 1e9) for stage in ("basic", "continual", "cooldown")] == [1500, 350, 150]
    assert f"{by_stage['basic']['learning_rate']['end']:.2e}" == "9.29e-05"
    assert f"{by_stage['continual']['learning_rate']['end']:.2e}" == "4.50e-05"
    assert by_stage["cooldown"]["learning_rate"]["end"] == 4e-5
    assert 2.3 < by_stage["basic"]["corpora"]["slimpajama"]["epochs_after"] < 2.5
    parents = {node["digest"]: node["parent"] for node in nodes}
    assert all(parent is None or parent in parents for parent in parents.values())
    assert {node["status"] for node in nodes} == {"absent"}
    assert list(tmp_path.iterdir()) == []


def test_the_tables_tell_each_run_whole_on_narrow_and_on_wide_terminals(run, tmp_path, monkeypatch):
    settings = [*FAMILY, f"paths.data={tmp_path}", "cluster=a100_40g_x4", "cluster.price_per_gpu_hour=1.5"]
    document = json.loads(run("plan", *settings, "format=json").out)
    assert document["totals"]["gpu_hours"] == pytest.approx(10 * 3456, rel=0.02)
    assert document["totals"]["gpu_hours_saved"] == pytest.approx(10 * 3456, rel=0.02)
    for width in (100, 200):
        monkeypatch.setattr(console, "_WIDE", width)
        result = run("plan", *settings)
        assert result.code == 0
        assert "…" not in result.out
        assert max(len(line) for line in result.out.splitlines()) <= width
        assert result.out.count("absent") == 7
        for node in document["nodes"]:
            name, samples = f"{node['stage']}-{node['digest'][:12]} ", node["corpora"]["slimpajama"]["samples"]
            lines = [line for line in result.out.splitlines() if line.strip().startswith(name)]
            assert len(lines) == 3, "a line in each of the three tables"
            for line, told in zip(lines, (node["steps"], samples, node["time"]["cost"]), strict=True):
                assert f"{told:,.0f}" in line
        assert "Shared: basic-" in result.out and "sizes in conf/" in result.out


def test_gpu_hours_of_a_cluster_without_a_price_have_no_cost(run, tmp_path):
    settings = ["stage=basic", f"paths.data={tmp_path}", f"paths.runs={tmp_path / 'runs'}", "format=json"]
    totals = json.loads(run("plan", *settings, "cluster=a100_40g_x4").out)["totals"]
    assert totals["gpu_hours"] > 0
    assert totals["cost"] is None


def test_an_error_is_told_in_the_document_and_by_the_exit_code(run, tmp_path):
    settings = ["stage=basic", f"paths.data={tmp_path}", "schedule.min_learning_rate=4e-4"]
    result = run("plan", *settings, "format=json")
    assert result.code == 2
    lints = json.loads(result.out)["lints"]
    assert ("error", "floor_above_peak", "schedule.min_learning_rate") in [
        (lint["level"], lint["name"], lint["setting"]) for lint in lints
    ]
    assert "schedule.min_learning_rate=0.0004" in result.err
    shown = run("plan", *settings)
    assert shown.code == 2 and "floor_above_peak" in shown.out


@pytest.mark.slow
def test_finished_runs_tell_how_fast_the_others_will_be(family_runs, small, run):
    seeded = [*small, f"paths.runs={family_runs}", "tracking=mlflow", "stage=basic,continual", "+variant=math_code"]
    document = json.loads(run("plan", *seeded, "format=json", "stages.continual.tokens=9K").out)
    nodes, totals = document["nodes"], document["totals"]
    assert [node["status"] for node in nodes] == ["done", "absent"]
    times = [node["time"] for node in nodes]
    assert [time["source"] for time in times] == ["the median of 3 finished runs of this model on this cluster"] * 2
    assert times[0]["gpu_hours"] == pytest.approx(nodes[0]["tokens"] / times[0]["tokens_per_second_per_gpu"] / 3600)
    assert times[0]["tokens_per_second_per_gpu"] == times[1]["tokens_per_second_per_gpu"] > 0
    assert totals["gpu_hours_remaining"] == pytest.approx(times[1]["gpu_hours"])


def test_the_states_on_disk_are_shown(family_runs, small, run, tmp_path):
    copy_runs(family_runs, tmp_path / "runs", [("basic", "standard"), ("continual", "standard")])
    (run_folder(tmp_path / "runs", "continual", "standard") / "DONE").unlink()
    nodes = json.loads(run("plan", *small, "stage=basic,continual,cooldown", "format=json").out)["nodes"]
    assert [node["status"] for node in nodes] == ["done", "partial", "absent"]
    assert not any(node["provisional"] for node in nodes)


@pytest.mark.slow
def test_pictures_are_drawn_on_request_and_named_on_standard_error(run, tmp_path):
    result = run("plan", "stage=basic", "format=json", f"paths.data={tmp_path}", f"plots={tmp_path / 'pictures'}")
    assert result.code == 0 and json.loads(result.out)["totals"]["nodes"] == 1
    named = [line for line in result.err.splitlines() if line.startswith(str(tmp_path))]
    assert sorted(named) == sorted(str(path) for path in (tmp_path / "pictures").iterdir())
    assert named
