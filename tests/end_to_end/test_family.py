"""The whole family by the command that a person types, and its files."""

import json
from collections import Counter
from pathlib import Path

import mlflow
import numpy as np
import pytest

from tests.end_to_end.conftest import STAGES, SWEEP, VARIANTS, lines, run_folder


@pytest.fixture(scope="session")
def family(family_runs: Path) -> Path:
    return family_runs


def test_the_basic_stage_is_trained_once_and_every_other_stage_once_per_variant(family):
    folders = Counter(path.name.split("-")[0] for path in (family / "demo").iterdir())
    assert folders == {"basic": 1, "continual": 3, "cooldown": 3}
    assert all((path / "DONE").is_file() for path in (family / "demo").iterdir())
    plans = [json.loads((path / "plan.json").read_text()) for path in (family / "demo").iterdir()]
    assert {plan["status"] for plan in plans} == {"done"}


def test_a_second_call_finds_everything_done_and_changes_nothing(family_copy, small, run):
    before = {path: path.stat().st_mtime_ns for path in family_copy.rglob("*")}
    result = run("train", "-m", *small, *SWEEP, "tracking=mlflow")
    assert result.code == 0
    assert result.err.count(" done ") == 7
    assert {path: path.stat().st_mtime_ns for path in family_copy.rglob("*")} == before


def test_the_learning_rate_is_one_cosine_and_the_cooldown_quadruples_nothing_but_its_batch(family):
    life = [step for stage in STAGES for step in lines(run_folder(family, stage, "chinese") / "metrics.jsonl")]
    tokens = [step["tokens"] for step in life]
    assert tokens == sorted(set(tokens))
    assert np.diff([0, *tokens]).tolist() == [1024] * 16 + [1024] * 8 + [2048] * 4
    for step in life:
        way = (step["tokens"] - 2000) / (32_000 - 2000)
        expected = 3e-3 * step["tokens"] / 2000 if way < 0 else 3e-4 + 2.7e-3 * (1 + np.cos(np.pi * min(1.0, way))) / 2
        assert step["learning_rate"] == pytest.approx(expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_corpus_stays_within_one_sample_of_its_integral_at_every_prefix(family, variant):
    target = {"standard": {}, "math_code": {"starcoder": 0.15, "proof_pile_2": 0.1}, "chinese": {"skypile": 0.5}}[
        variant
    ]
    ramp = 4000 / 32
    samples = [sample for step in lines(run_folder(family, "continual", variant) / "samples.jsonl")
               for sample in step["samples"]]  # fmt: skip
    n = np.arange(1, len(samples) + 1)
    integral = np.where(n < ramp, n * n / (2 * ramp), n - ramp / 2)
    for corpus in ("slimpajama", "starcoder", "proof_pile_2", "skypile"):
        share = target.get(corpus, 0.0)
        due = n - integral * sum(target.values()) if corpus == "slimpajama" else integral * share
        drawn = np.cumsum([name == corpus for name, _, _ in samples])
        assert np.abs(drawn - due).max() < 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_sample_is_read_twice_before_its_corpus_is_exhausted(family, variant, data):
    read: dict[str, list[int]] = {}
    for stage in STAGES:
        for step in lines(run_folder(family, stage, variant) / "samples.jsonl"):
            for corpus, draw, sample in step["samples"]:
                assert draw == len(read.setdefault(corpus, []))
                read[corpus].append(sample)
    for corpus, samples in read.items():
        manifest = json.loads((data / "shards" / "demo-32" / corpus / "manifest.json").read_text())
        size = manifest["train"]["samples"]
        for start in range(0, len(samples), size):
            epoch = samples[start : start + size]
            assert len(set(epoch)) == len(epoch)
    assert len(read["slimpajama"]) > size // 2


def test_mlflow_knows_the_basic_run_once_with_its_tracked_children(family):
    client = mlflow.MlflowClient(f"sqlite:///{family}/mlflow.db")
    experiment = client.get_experiment_by_name("demo")
    runs = {run.data.tags["digest"]: run for run in client.search_runs([experiment.experiment_id])}
    assert len(runs) == 3
    (basic,) = [run for run in runs.values() if run.data.tags["stage"] == "basic"]
    children = [run for run in runs.values() if run.data.tags.get("parent_digest") == basic.data.tags["digest"]]
    assert {run.data.tags["variants"] for run in children} == {"standard", "chinese"}
    assert {run.data.tags["stage"] for run in children} == {"continual"}
    assert all(run.data.tags["parent_run_id"] == basic.info.run_id for run in children)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    history = client.get_metric_history(basic.info.run_id, "loss")
    recorded = lines(run_folder(family, "basic", "chinese") / "metrics.jsonl")
    assert [(entry.step, entry.value) for entry in history] == [(step["step"], step["loss"]) for step in recorded]
    assert {entry.dataset.name for entry in basic.inputs.dataset_inputs} == {"slimpajama"}


def test_the_validation_loss_shows_what_each_variant_was_trained_for(family):
    def loss(variant: str, corpus: str) -> float:
        done = json.loads((run_folder(family, "cooldown", variant) / "DONE").read_text())
        return done["validation"][corpus]

    assert loss("chinese", "skypile") < min(loss("standard", "skypile"), loss("math_code", "skypile")) - 0.1
    for corpus in ("starcoder", "proof_pile_2"):
        assert loss("math_code", corpus) < min(loss("standard", corpus), loss("chinese", corpus)) - 0.05


def test_the_identity_file_is_what_the_digest_is_made_of(family):
    from tinyllama.planning.identity import digest

    for folder in (family / "demo").iterdir():
        identity = json.loads((folder / "identity.json").read_text())
        assert digest(identity["meaning"]) == identity["digest"]
        assert folder.name.endswith(identity["digest"][:12])
