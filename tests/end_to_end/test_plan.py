"""`python -m tinyllama.plan`: the tree as one JSON document, or as a table."""

import json

FAMILY = ["+variant=standard,math_code,chinese", "stage=basic,continual,cooldown"]


def test_the_real_family_plans_as_seven_nodes(run, tmp_path):
    result = run("plan", *FAMILY, "format=json", f"paths.data={tmp_path}", f"paths.runs={tmp_path / 'runs'}")
    assert result.code == 0
    document = json.loads(result.out)
    nodes = document["nodes"]
    assert document["totals"]["nodes"] == len(nodes) == 7
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


def test_the_table_shows_each_run_once(run, tmp_path):
    result = run("plan", *FAMILY, f"paths.data={tmp_path}")
    assert result.code == 0
    assert result.out.count("absent") == 7
    assert "sizes in conf/" in result.out


def test_the_states_on_disk_are_shown(small, run, shell):
    assert shell("train", *small, "stage=basic", "tracking=none").code == 0
    nodes = json.loads(run("plan", *small, "stage=basic,continual", "format=json").out)["nodes"]
    assert [node["status"] for node in nodes] == ["done", "absent"]
    assert not any(node["provisional"] for node in nodes)
