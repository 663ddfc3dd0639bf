"""Evaluating a small family: the real commands, real lm-eval, tasks made of held-out documents, MLflow in sqlite."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.end_to_end.conftest import SHARDED, copy_runs, lines, only_run, run_folder
from tests.end_to_end.faults import flip
from tests.shared import copy_of
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.lineage import mlflow
from tinyllama.model.transformers import hf_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("evaluate")]

TASKS = "evaluation.tasks=[held_out,perplexity]"
LIMIT = "evaluation.limit=12"
MODELS = ["+variant=standard,chinese", "stage=basic,continual"]


@pytest.fixture(scope="module")
def family(family_runs: Path, data: Path, settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a trained family of a root and two leaves on its corpora, copies of the shared ones."""
    target = tmp_path_factory.mktemp("family")
    copy_runs(
        family_runs, target / "runs", [("basic", "standard"), ("continual", "standard"), ("continual", "chinese")]
    )
    copy_of(data, target / "data")  # where questions are written
    return [*settings, f"paths.data={target / 'data'}", f"paths.runs={target / 'runs'}", LIMIT, "tracking=mlflow"]


@pytest.fixture(scope="module")
def evaluated(family: list[str], shell: Callable[..., Any]) -> Mapping[str, Any]:
    """What is said of the root and the leaves, by model."""
    found = shell("evaluate", *family, *MODELS, TASKS, "format=json")
    assert found.code == 0, found.err
    return {document["model"]: document for document in json.loads(found.out)["models"]}


def runs(family: list[str]) -> dict[str, RunFolder]:
    """By name."""
    (place,) = [text.partition("=")[2] for text in family if text.startswith("paths.runs=")]
    return {path.name: RunFolder(path) for path in Path(place).glob("demo/*-*")}


def test_the_root_comes_first_and_the_leaves_are_held_against_it(family: list[str], evaluated: Mapping[str, Any]):
    root, *leaves = evaluated.values()
    assert root["model"].startswith("basic-") and root["parent"] is None
    assert [leaf["variants"] for leaf in leaves] == [["standard"], ["chinese"]]
    for leaf in leaves:
        assert leaf["parent"]["model"] == root["model"]
        for task, gained in leaf["parent"]["differences"].items():
            assert gained == pytest.approx(leaf["tasks"][task]["value"] - root["tasks"][task]["value"])
        assert set(leaf["parent"]["differences"]) == set(root["tasks"]) == set(leaf["tasks"])
    assert all(0 < task["samples"] <= 12 and task["published"] is None for task in root["tasks"].values())


def test_losses_are_those_of_training_s_last_validation(family: list[str], evaluated: Mapping[str, Any]):
    for name, folder in runs(family).items():
        losses = {corpus: found["loss"] for corpus, found in evaluated[name]["perplexity"].items()}
        assert losses == pytest.approx(lines(folder.metrics)[-1]["validation"], abs=1e-5)


def test_training_comes_to_the_same_bits_and_asks_the_model_as_evaluate_does_afterwards(
    family: list[str], family_runs: Path, evaluated: Mapping[str, Any], shell: Callable[..., Any], tmp_path: Path
):
    """Placed as the shared family's basic stage, whose weights lie in parts on two ranks."""
    quiet = RunFolder(run_folder(family_runs, "basic", "standard"))
    asking = [TASKS, "evaluation.every_tokens=10K", f"paths.runs={tmp_path}", "tracking=none"]
    trained = shell("train", *family, "stage=basic", *SHARDED, *asking)
    assert trained.code == 0, trained.err
    asked = RunFolder(only_run(tmp_path))
    assert asked.path.name == quiet.path.name, "what is asked enters no digest"
    _assert_same_state(asked, quiet)
    found = [step for step in lines(asked.metrics) if "evaluation" in step]
    assert [step["step"] for step in found] == [10, 16]
    document = evaluated[asked.path.name]
    values = {task: each["value"] for task, each in document["tasks"].items()}
    assert found[-1]["evaluation"] == pytest.approx(values | document["suites"])


@pytest.mark.soak
def test_training_on_one_rank_comes_to_the_same_bits_whether_or_not_the_model_was_asked_meanwhile(
    family: list[str], shell: Callable[..., Any], tmp_path: Path
):
    overrides = [*family, "tracking=none", "stage=basic", "stages.basic.tokens=8K", "evaluation.limit=6"]
    for place, more in (("quiet", []), ("asked", ["evaluation.tasks=[held_out]", "evaluation.every_tokens=3K"])):
        trained = shell("train", *overrides, f"paths.runs={tmp_path / place}", *more)
        assert trained.code == 0, trained.err
    quiet, asked = (RunFolder(only_run(tmp_path / place)) for place in ("quiet", "asked"))
    assert [step["step"] for step in lines(asked.metrics) if "evaluation" in step] == [3, 6, 8]
    _assert_same_state(asked, quiet)


def _assert_same_state(one: RunFolder, other: RunFolder) -> None:
    """Their last checkpoints hold the same bits."""
    last, others = (folder.checkpoint(folder.checkpoint_tokens()[-1]) for folder in (one, other))
    for file in ("weights.safetensors", "exp_avg.safetensors", "exp_avg_sq.safetensors"):
        assert (last / file).read_bytes() == (others / file).read_bytes()


def test_what_was_found_lies_with_each_run_and_in_mlflow(family: list[str], evaluated: Mapping[str, Any]):
    for name, folder in runs(family).items():
        document = evaluated[name]
        (tokens,) = folder.evaluation_tokens()
        kept = json.loads(folder.evaluation(tokens).read_text())
        assert kept == {field: value for field, value in document.items() if field != "parent"}
        assert not list(folder.outbox.glob("*.json"))
        client = mlflow.open_store(f"sqlite:///{folder.path.parents[1] / 'mlflow.db'}")
        run = mlflow.find_run(client, client.get_experiment_by_name("demo").experiment_id, document["digest"])
        assert run is not None and run.info.status == "FINISHED"
        for task, found in document["tasks"].items():
            history = client.get_metric_history(run.info.run_id, f"evaluation/{task}")
            assert [point.value for point in history if point.step == document["step"]] == [found["value"]]
        for corpus, losses in document["perplexity"].items():
            assert run.data.metrics[f"bits_per_byte/{corpus}"] == losses["bits_per_byte"]
        files = {file.path for file in client.list_artifacts(run.info.run_id, "evaluations")}
        assert files == {f"evaluations/{tokens:015d}.json", f"evaluations/{tokens:015d}.md"}


@pytest.mark.usefixtures("evaluated")
def test_people_get_a_table_of_tasks_and_one_of_losses(family: list[str], shell: Callable[..., Any]):
    shown = shell("evaluate", *family, "+variant=chinese", "stage=continual", TASKS, "tracking=none")
    assert shown.code == 0, shown.err
    first, second, *rows = shown.out.splitlines()
    assert "continual-" in first and second.split() == ["task", "chinese", "basic"]
    names = [row.split()[0] for row in rows if row.strip()]
    assert names[:5] == [*(f"held_out_{name}" for name in ("slimpajama", "starcoder", "proof_pile_2", "skypile")),
                         "held_out"]  # fmt: skip
    assert names[-4:] == ["slimpajama", "starcoder", "proof_pile_2", "skypile"]


def test_a_folder_in_hugging_face_s_layout_has_the_numbers_of_the_run_that_it_was_made_of(
    family: list[str], evaluated: Mapping[str, Any], shell: Callable[..., Any], tmp_path: Path
):
    """As lm-eval's own `hf` model has them, too."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    name = next(name for name in evaluated if name.startswith("basic-"))
    saved = save_folder(runs(family)[name], family, tmp_path / "saved")
    found = shell("evaluate", *family, f"run={runs(family)[name].path}", f"evaluation.models=[{saved}]", TASKS,
                "tracking=none", "format=json")  # fmt: skip
    assert found.code == 0, found.err
    ours, theirs = json.loads(found.out)["models"]
    assert {task: each["value"] for task, each in ours["tasks"].items()} == {
        task: each["value"] for task, each in theirs["tasks"].items()
    }
    for corpus, losses in ours["perplexity"].items():
        assert theirs["perplexity"][corpus]["bytes"] == pytest.approx(losses["bytes"], abs=4)
        assert theirs["perplexity"][corpus]["bits_per_byte"] == pytest.approx(losses["bits_per_byte"], rel=0.02)

    alone = shell("evaluate", *family, f"run={saved}", "evaluation.tasks=[held_out_skypile]", LIMIT,
                  "tracking=none", "format=json")  # fmt: skip
    assert json.loads(alone.out)["tasks"]["held_out_skypile"] == theirs["tasks"]["held_out_skypile"], alone.err

    (task,) = folder_of(family).glob("held_out/skypile@*")
    manager = TaskManager(include_path=str(task), include_defaults=False)
    question = manager.task_index["held_out_skypile"]
    question.cfg["dataset_kwargs"] = {"data_files": {"test": str(task / "questions.jsonl")}}
    question.yaml_path = None
    stock = simple_evaluate(
        "hf", {"pretrained": str(saved)}, ["held_out_skypile"], task_manager=manager, device="cpu", limit=12
    )
    assert 100 * stock["results"]["held_out_skypile"]["acc_norm,none"] == ours["tasks"]["held_out_skypile"]["value"]


def folder_of(family: list[str]) -> Path:
    *_, place = [text.partition("=")[2] for text in family if text.startswith("paths.data=")]
    return Path(place)


def save_folder(folder: RunFolder, family: list[str], target: Path) -> Path:
    """A run's last checkpoint as transformers saves it."""
    from tinyllama.checkpoint.choice import choose_of, read_weights, tokenizer_file
    from tinyllama.config.load import from_yaml
    from tinyllama.model.transformers import hf_model

    chosen = choose_of(folder, from_yaml(folder.config))
    hf_model(read_weights(chosen), chosen.config.model, torch.float32).save_pretrained(target)
    hf_tokenizer(tokenizer_file(chosen), chosen.config.tokenizer, chosen.config.model.seq_len).save_pretrained(target)
    return target


@pytest.mark.parametrize(
    "more, code, message",
    [
        (["stage=cooldown"], 2, "has not been trained"),
        (["stage=basic", "at_tokens=1"], 2, "no checkpoint there"),
        (["stage=basic", "evaluation.models=[nowhere]"], 2, "neither a folder in Hugging Face's layout"),
        (["run=/"], 2, "is not the directory of a run"),
        (["stage=basic", "evaluation.folder=nowhere"], 2, "evaluation.folder=nowhere is no folder"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(
    family: list[str], run: Callable[..., Any], more: list[str], code: int, message: str
):
    refused = run("evaluate", *family, *more)
    assert refused.code == code and message in refused.err and refused.out == ""
    assert len(refused.err.strip().splitlines()) == 1


def test_a_damaged_checkpoint_is_refused_by_the_name_of_its_file(
    family: list[str], run: Callable[..., Any], tmp_path: Path
):
    (root,) = [folder for name, folder in runs(family).items() if name.startswith("basic-")]
    copy = RunFolder(copy_of(root.path, tmp_path / root.path.name))
    weights = copy.checkpoint(copy.checkpoint_tokens()[-1]) / "weights.safetensors"
    flip(weights)
    refused = run("evaluate", *family, f"run={copy.path}", TASKS)
    assert refused.code == 3 and f"{weights} is damaged" in refused.err


def test_losses_of_corpora_that_are_gone_are_left_out_with_a_word(
    family: list[str], run: Callable[..., Any], tmp_path: Path
):
    (root,) = [folder for name, folder in runs(family).items() if name.startswith("basic-")]
    shutil.copytree(folder_of(family) / "tokenizers", tmp_path / "tokenizers")
    refused = run("evaluate", *family, f"paths.data={tmp_path}", f"run={root.path}", "evaluation.tasks=[perplexity]")
    assert refused.code == 2 and f"none are below paths.data={tmp_path}" in refused.err
