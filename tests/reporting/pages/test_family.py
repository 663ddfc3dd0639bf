"""A family from its run directories."""

import json
import shutil

import pytest

from tests.reporting.pages.conftest import FAMILY, lines_of
from tinyllama.errors import ConfigError, DamageError
from tinyllama.reporting.pages.runs import read_runs

pytestmark = pytest.mark.xdist_group("page")  # one family for all of them


@pytest.mark.slow
def test_the_tree_stands_in_order_with_what_became_of_each_run(family):
    found = read_runs(family.runs, "demo")
    assert [(run.stage, run.variants) for run in found.runs] == [
        ("basic", ("standard", "math_code", "chinese")),
        ("continual", ("standard",)), ("cooldown", ("standard",)),
        ("continual", ("math_code",)), ("cooldown", ("math_code",)),
        ("continual", ("chinese",)), ("cooldown", ("chinese",)),
    ]  # fmt: skip
    assert [run.finished for run in found.runs] == [True] * 6 + [False]
    *_, continual, cooldown = found.runs
    assert found.parent(cooldown) is continual
    assert [(each.step, each.skipped, each.loss) for each in continual.remarks] == [(7, True, 9.75), (9, True, None)]
    assert [(pause.step, round(pause.seconds)) for pause in continual.pauses] == [(12, 120)]
    assert [run.pauses for run in found.runs if run is not continual] == [()] * 6
    plan = family.nodes["cooldown chinese"].plan
    assert cooldown.trained_tokens == 3 * plan.batch_tokens
    assert cooldown.hours == pytest.approx(3 / 3600)
    assert cooldown.rank_hours == pytest.approx(6 / 3600)
    assert cooldown.checkpoints == (plan.start_tokens + 3 * plan.batch_tokens,)
    assert continual.evaluation["tasks"]["hellaswag"]["value"] == 27.5


def test_what_is_optional_may_be_missing_and_what_has_not_begun_is_left_out(writer):
    writer.plan(*FAMILY[:2])
    folder = writer.write("basic standard", steps=3)
    shutil.rmtree(folder.checkpoints)
    folder.metrics.write_text(folder.metrics.read_text()[:-30])
    waiting = writer.folder("continual standard")
    waiting.job.mkdir(parents=True)
    (run,) = read_runs(writer.runs, "demo").runs
    assert run.steps.step.tolist() == [1, 2]
    assert (run.checkpoints, run.ranks, run.rank_hours, run.evaluation) == ((), None, None, None)


def test_two_runs_of_one_stage_and_variant_are_told_apart_by_their_digests(writer):
    writer.plan(*FAMILY[:2])
    for name in writer.nodes:
        writer.write(name, steps=5)
    writer.plan((*FAMILY[1], "stage.batch_tokens=8192"))
    writer.write("continual standard", steps=5)
    found = read_runs(writer.runs, "demo")
    assert len(found.runs) == 3
    assert [len(found.children(run)) for run in found.runs] == [2, 0, 0]
    assert sorted(map(found.title, found.runs)) == sorted(
        [
            "basic of standard",
            *(f"continual of standard ({run.digest[:6]})" for run in found.runs if run.stage == "continual"),
        ]
    )


def test_a_run_whose_parent_is_not_there_is_a_root_of_its_own(writer):
    writer.plan(*FAMILY[:2])
    writer.write("continual standard")
    found = read_runs(writer.runs, "demo")
    assert [run.stage for run in found.roots] == ["continual"]
    assert found.parent(found.runs[0]) is None


def test_a_family_that_does_not_exist_is_refused_with_those_that_do(family):
    with pytest.raises(ConfigError, match="family=dmeo has no runs in .*; families there: demo"):
        read_runs(family.runs, "dmeo")
    with pytest.raises(ConfigError, match="nor of any other family"):
        read_runs(family.runs / "demo", "demo")


@pytest.mark.parametrize("name", ["identity", "plan"])
def test_a_damaged_record_is_refused_with_its_path(name, writer):
    writer.plan(FAMILY[0])
    path = getattr(writer.write("basic standard", steps=2), name)
    path.write_text("{")
    with pytest.raises(DamageError, match=str(path)):
        read_runs(writer.runs, "demo")


def test_numbers_are_those_of_the_journals(family):
    for run in read_runs(family.runs, "demo").runs:
        written = lines_of(family.runs / "demo" / run.name / "metrics.jsonl")
        assert run.steps.tokens.tolist() == [line["tokens"] for line in written]
        for name in ("learning_rate", "grad_norm", "tokens_per_second", "data_wait"):
            assert run.steps.value(name).tolist() == [line[name] for line in written]
        assert json.dumps(run.steps.last("loss")) == json.dumps(written[-1]["loss"])
