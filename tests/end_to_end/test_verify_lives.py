"""The order chain of runs that are laid out otherwise and interrupted, and what MLflow keeps of one."""

import json
import signal
import time
from pathlib import Path

import mlflow
import pytest

from tests.forked import Forked
from tinyllama.checkpoint.layout import RunFolder

pytestmark = pytest.mark.slow

BASIC = ["stage=basic", "stage.tokens=24K", "schedule.horizon_tokens=24K", "trace=true"]
KEEP = ["checkpoint.keep=100"]
WORLDS = {
    "two": ["cluster.processes=2", "cluster.workers=1"],
    "four": ["cluster.processes=4", "cluster.micro_batch=2"],
}


def basic(runs: Path) -> RunFolder:
    (path,) = (runs / "demo").glob("basic-*")
    return RunFolder(path)


def chains(runs: Path) -> dict[int, str]:
    folder = basic(runs)
    return {
        tokens: json.loads((folder.checkpoint(tokens) / "manifest.json").read_text())["order_chain"]
        for tokens in folder.checkpoint_tokens()
    }


def end_after(process: Forked, runs: Path, steps: int, number: signal.Signals) -> None:
    """Send a life this signal once so many steps are done."""
    while process.poll() is None:
        found = list(runs.glob("demo/*/metrics.jsonl"))
        if found and found[0].read_text().count("\n") >= steps:
            process.send_signal(number)
            break
        time.sleep(0.002)
    process.communicate()
    assert process.returncode in (75, -number), "it ended before it was told to"


def test_the_chain_is_the_same_on_any_processes_and_with_any_interruption(settings, begin, shell, tmp_path):
    result = shell("train", *settings, f"paths.runs={tmp_path / 'one'}", *BASIC, *KEEP)
    assert result.code == 0, result.err
    overrides = [*settings, f"paths.runs={tmp_path / 'broken'}", *BASIC, *KEEP]
    end_after(begin("train", *overrides), tmp_path / "broken", 7, signal.SIGKILL)
    end_after(begin("train", *overrides, *WORLDS["two"]), tmp_path / "broken", 12, signal.SIGTERM)
    assert shell("train", *overrides, *WORLDS["four"]).code == 0
    expected = chains(tmp_path / "one")
    assert len(expected) == 4
    assert chains(tmp_path / "broken").items() >= expected.items()  # and one where it was stopped
    result = shell("verify", *settings, f"paths.runs={tmp_path / 'broken'}", *BASIC, "format=json")
    assert result.code == 0, result.out


def test_what_mlflow_tells_otherwise_is_found(family_copy, run):
    runs = family_copy
    verify = ["verify", f"run={basic(runs).path}", "format=json"]
    result = run(*verify)
    document = json.loads(result.out)
    assert (result.code, document["checks"][-1]["detail"]) == (0, "mlflow tells the same"), document
    client = mlflow.MlflowClient(f"sqlite:///{runs}/mlflow.db")
    experiment = client.get_experiment_by_name("demo")
    (there,) = client.search_runs([experiment.experiment_id], "tags.stage = 'basic'")
    client.set_tag(there.info.run_id, "stage", "cooldown")
    result = run(*verify)
    assert result.code == 3
    assert "mlflow has another record of the run: tag stage: basic here, cooldown there" in result.err
