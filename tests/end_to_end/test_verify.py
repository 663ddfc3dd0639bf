"""A run proves itself from what it left on disk; whatever is changed of it is found and named."""

import json
import shutil
from pathlib import Path

import pytest

from tests.end_to_end.conftest import copy_runs, run_folder
from tests.end_to_end.faults import FAULTS, edit, look_at, manifest, reseal, without_line, wrong_at
from tests.shared import copy_of
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.planning.identity import digest

STAGES = ("basic", "continual", "cooldown")
TRAINED = ["+variant=chinese", "trace=true", "tracking=none"]
PATH = [(stage, "chinese") for stage in STAGES]
"""Of the shared family: basic and continual were trained on two ranks with ZeRO-3, cooldown on one."""


@pytest.fixture
def runs(family_runs, tmp_path):
    """Copies of the three stages of a variant that may be damaged, as if they had not been recorded in MLflow."""
    runs = copy_runs(family_runs, tmp_path / "runs", PATH)
    for config in runs.glob("demo/*/config.yaml"):
        config.write_text(config.read_text().replace("\n  name: mlflow\n", "\n  name: none\n"))
    return runs


def of(runs: Path, stage: str) -> RunFolder:
    return RunFolder(run_folder(runs, stage, "chinese"))


@pytest.fixture
def verify(run):
    """verify(folder) -> exit code, the JSON document, standard error."""

    def verify_run(folder: RunFolder, *more: str):
        result = run("verify", f"run={folder.path}", "format=json", *more)
        return result.code, json.loads(result.out), result.err

    return verify_run


def test_a_healthy_run_is_proven_to_the_root(family_runs, settings, run):
    placement = [f"paths.runs={family_runs}", "cluster.processes=1"]  # where it is verified does not matter
    result = run("verify", *settings, *TRAINED, *placement, "stage=cooldown", "format=json")
    document = json.loads(result.out)
    assert (result.code, document["ok"]) == (0, True), document
    assert document["digest"] == digest(json.loads(of(family_runs, "cooldown").identity.read_text())["meaning"])
    looked_at = [check["name"] for check in document["checks"]]
    for stage in STAGES:
        folder = of(family_runs, stage)
        for what in ("identity", "plan", "corpora", "order", "metrics", "samples", "end", "tracking"):
            assert f"{folder.path.name}: {what}" in looked_at
        for tokens in folder.checkpoint_tokens():
            assert f"{folder.path.name}: checkpoint {tokens:015d}" in looked_at


def test_the_table_for_people_tells_each_check(runs, run):
    result = run("verify", f"run={of(runs, 'basic').path}")
    assert result.code == 0
    assert "from random weights: basic-" in result.out
    assert "steps 1 to 16, each once" in result.out


def test_no_torch_and_no_streaming_is_needed(adopted_runs, loaded_by):
    statement = "from tinyllama.verify import main; main()"
    run = f"run={of(adopted_runs, 'basic').path}"
    assert loaded_by(statement, "torch", "streaming", arguments=[run]) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_and_named(runs, fault):
    damage, name, detail = FAULTS[fault]
    damage(of(runs, "basic"), here := of(runs, "cooldown"))
    wrong = wrong_at(here)
    stage, _, what = name.partition("-* ")
    found = [check for check in wrong if check.name.startswith(stage) and what in check.name]
    assert found, wrong
    assert detail in found[0].detail


@pytest.mark.parametrize("fault", ["a flipped byte in a checkpoint", "an edited identity"])
def test_a_fault_ends_in_exit_code_3_and_the_first_difference_in_one_message(runs, verify, fault):
    FAULTS[fault][0](of(runs, "basic"), here := of(runs, "cooldown"))
    code, document, err = verify(here)
    wrong = [check for check in document["checks"] if not check["ok"]]
    assert (code, document["ok"]) == (3, False)
    assert f"{wrong[0]['name']}: {wrong[0]['detail']}" in err
    assert "Traceback" not in err


LINES = {"the first and the last but one": lambda count: (1, count - 2), "every": range}


@pytest.mark.parametrize("which", ["the first and the last but one", pytest.param("every", marks=pytest.mark.soak)])
def test_every_line_of_every_manifest_counts(runs, which):
    here = of(runs, "basic")
    for path in (manifest(here, 0), here.corpora, here.identity, here.plan):
        whole = path.read_text()
        for number in LINES[which](len(whole.splitlines())):
            without_line(path, number)
            assert not all(check.ok for check in look_at(here)), f"line {number} of {path.name}"
            path.write_text(whole)
    assert all(check.ok for check in look_at(here))


# ---------------------------------------------------------------- another parent


@pytest.fixture
def other(adopted_runs):
    """A basic run of the same sizes with another meaning."""
    return adopted_runs


def test_a_parents_directory_with_another_run_in_it_is_found(runs, other):
    parent = of(runs, "basic").path
    shutil.rmtree(parent)
    copy_of(of(other, "basic").path, parent)
    (wrong,) = wrong_at(of(runs, "continual"))
    assert "identity.json is damaged" in wrong.detail


def test_a_parents_checkpoint_of_another_run_is_found(runs, other):
    parent, stranger = of(runs, "basic"), of(other, "basic")
    last = manifest(parent).parent
    shutil.rmtree(last)
    copy_of(manifest(stranger).parent, last)
    assert "belongs to another run" in wrong_at(of(runs, "continual"))[0].detail


def test_a_parents_checkpoint_of_another_run_under_its_name_is_found_by_its_order(runs, other):
    parent, stranger = of(runs, "basic"), of(other, "basic")
    last = manifest(parent).parent
    shutil.rmtree(last)
    copy_of(manifest(stranger).parent, last)
    owner = digest(json.loads(parent.identity.read_text())["meaning"])
    reseal(manifest(parent), lambda fields: fields.update(digest=owner, adopted=None))
    wrong = wrong_at(of(runs, "continual"))
    assert "the order chain is" in wrong[0].detail
    continual = next(check for check in wrong if check.name.startswith("continual") and "order" in check.name)
    assert "proves nothing" in continual.detail


def test_a_child_that_names_another_parent_is_found(runs, other):
    here = of(runs, "continual")
    copy_of(of(other, "basic").path, runs / "demo" / of(other, "basic").path.name)
    stranger = digest(json.loads(of(other, "basic").identity.read_text())["meaning"])

    def change(fields):
        fields["meaning"]["parent"] = stranger
        fields["digest"] = digest(fields["meaning"])

    edit(here.identity, change)
    moved = here.path.with_name(f"continual-{json.loads(here.identity.read_text())['digest'][:12]}")
    here.path.rename(moved)
    assert any("belongs to another run" in check.detail for check in wrong_at(RunFolder(moved)))


# ---------------------------------------------------------------- what is there no longer


def test_a_run_that_was_stopped_is_proven_as_far_as_it_came(runs):
    here = of(runs, "cooldown")
    here.done.unlink()
    reseal(here.plan, lambda fields: fields.update(status="partial"))
    shutil.rmtree(manifest(here).parent)
    with here.metrics.open("a") as file:
        file.write('{"step":5,"tok')
    checks = look_at(here)
    assert all(check.ok for check in checks), checks
    assert checks[-2].detail == "not done: step 3 of 4"


def test_a_run_is_proven_when_its_data_is_gone_and_not_when_its_data_has_changed(runs, tmp_path):
    here = of(runs, "continual")
    recorded = Path(json.loads(here.corpora.read_text())["skypile"]["folder"])
    copy = Path(shutil.copytree(recorded, tmp_path / "skypile"))
    reseal(here.corpora, lambda fields: fields["skypile"].update(folder=str(copy)))
    assert wrong_at(here) == []
    edit(copy / "manifest.json", lambda fields: fields.update(documents=5))
    (wrong,) = wrong_at(here)
    assert f"{copy / 'manifest.json'} is not what the run was trained on" in wrong.detail
    shutil.rmtree(copy)
    checks = look_at(here)
    assert all(check.ok for check in checks)
    assert any("gone, so their record is relied on: skypile" in check.detail for check in checks)


# ---------------------------------------------------------------- contains


def test_it_tells_when_a_sample_was_seen_exactly_as_the_trace_has_it(family_runs, verify):
    traced: dict[tuple[str, int], list[tuple]] = {}
    for stage in STAGES:
        for line in of(family_runs, stage).samples.read_text().splitlines():
            step = json.loads(line)
            for corpus, draw, sample in step["samples"]:
                traced.setdefault((corpus, sample), []).append((stage, draw, step["step"], step["tokens"]))
    often = max(traced, key=lambda key: len(traced[key]))
    late = next(key for key, seen in traced.items() if key[0] == "skypile" and seen[0][0] == "cooldown")
    for corpus, sample in (often, late):
        code, document, _ = verify(of(family_runs, "cooldown"), f"contains={corpus}:{sample}")
        answer = document["contains"]
        assert (code, answer["corpus"], answer["sample"]) == (0, corpus, sample)
        seen = [(each["stage"], each["draw"], each["step"], each["tokens"]) for each in answer["seen"]]
        assert seen == traced[corpus, sample]
        assert answer["times"] == len(seen) > 0
    assert len(traced[often]) > 2
    code, document, _ = verify(of(family_runs, "continual"), f"contains=skypile:{late[1]}")
    assert document["contains"] == {
        "corpus": "skypile",
        "sample": late[1],
        "times": 0,
        "seen": [],
        "known_from_tokens": 0,
    }


@pytest.mark.parametrize(
    "question, answer",
    [
        ("skypile:100000", "has samples 0 to "),
        ("skypil:3", "did you mean skypile?"),
        ("starcoder:3", "valid: skypile, slimpajama"),
        ("skypile", "is not CORPUS:SAMPLE"),
        ("skypile:-1", "is not CORPUS:SAMPLE"),
    ],
)
def test_a_question_that_makes_no_sense_is_answered_with_what_would(family_runs, run, question, answer):
    result = run("verify", f"run={of(family_runs, 'cooldown').path}", f"contains={question}")
    assert result.code == 2
    assert answer in result.err


def test_a_run_that_has_not_been_trained_is_named_with_those_that_have(family_runs, settings, run):
    result = run("verify", *settings, *TRAINED, f"paths.runs={family_runs}", "stage=cooldown", "seed=9")
    assert result.code == 2
    assert f"run={of(family_runs, 'cooldown').path}" in result.err


# ---------------------------------------------------------------- what was not trained here from the root


def test_an_adopted_run_is_proven_from_there_on_and_says_so(family_runs, adopted_runs, verify, tmp_path):
    source = of(family_runs, "basic").checkpoint(8192)
    here = of(copy_of(adopted_runs, tmp_path / "runs"), "basic")
    early = json.loads(here.samples.read_text().splitlines()[0])["samples"][0]
    code, document, _ = verify(here, f"contains={early[0]}:{early[2]}")
    assert (code, document["ok"]) == (0, True), document
    details = {check["name"].partition(": ")[2]: check["detail"] for check in document["checks"]}
    assert f"up to step 8 the run was adopted from {source.parents[1].name[-12:]} ({source})" in details["order"]
    assert details["metrics"] == "steps 9 to 16, each once"
    assert document["contains"]["known_from_tokens"] == 8 * 1024
    assert [each["step"] for each in document["contains"]["seen"]][0] == 9
    reseal(manifest(here), lambda fields: fields["adopted"].update(order_chain="0" * 64))
    assert not all(check.ok for check in look_at(here))


def test_a_run_from_a_hugging_face_folder_names_its_weights(runs):
    """What identity.json says of a root that does not begin with random weights; the folder may be gone."""
    here = of(runs, "basic")
    folder = "stage.parent=hf:/gone"
    text = here.config.read_text()
    stage = text.index("\nstage:\n")
    here.config.write_text(text[:stage] + text[stage:].replace("  parent: null", f"  parent: {folder[13:]}", 1))
    weights = "a" * 64

    def change(fields):
        fields["meaning"]["parent"] = f"hf:{weights}"
        fields["digest"] = digest(fields["meaning"])

    edit(here.identity, change)
    owner = json.loads(here.identity.read_text())["digest"]
    reseal(here.plan, lambda fields: fields.update(digest=owner, origin=f"hf:{weights}"))
    for tokens in here.checkpoint_tokens():
        reseal(here.checkpoint(tokens) / "manifest.json", lambda fields: fields.update(digest=owner))
    moved = here.path.rename(here.path.with_name(f"basic-{owner[:12]}"))
    checks = look_at(RunFolder(moved))
    assert all(check.ok for check in checks), checks
    assert "from Hugging Face weights aaaaaaaaaaaa" in checks[0].detail
