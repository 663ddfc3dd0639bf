import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.shared import shared_folder
from tinyllama.lineage import Dataset, RunRecord

MakeRecord = Callable[..., RunRecord]
WriteSteps = Callable[..., None]


@pytest.fixture
def make_record(tmp_path: Path) -> MakeRecord:
    """A record of a stage whose digest and parent's digest are repeated letters; its run directory is there."""

    def make(stage: str, letter: str, parent: str | None = None, **changes: object) -> RunRecord:
        directory = tmp_path / "runs" / "llamas" / f"{stage}-{12 * letter}"
        directory.mkdir(parents=True, exist_ok=True)
        values: dict[str, object] = {
            "family": "llamas",
            "stage": stage,
            "variants": ("standard",),
            "digest": 64 * letter,
            "parent_digest": None if parent is None else 64 * parent,
            "model_digest": 64 * "e",
            "params": {"model.num_layers": 4, "optimizer.learning_rate": 4e-4},
            "datasets": (Dataset("slimpajama", 64 * "f", "data/slimpajama", 1000),),
            "git_commit": "0123abc",
            "cluster": "local",
            "gpu": None,
            "ranks": 2,
            "zero_stage": 1,
            "directory": directory,
            "journal": directory / "metrics.jsonl",
            "done": directory / "DONE",
            "lock": directory / ".lock",
            "outbox": directory / "outbox",
            "evaluations": directory / "evaluations",
        }
        return RunRecord(**(values | changes))  # type: ignore[arg-type]

    return make


@pytest.fixture
def write_steps() -> WriteSteps:
    """write_steps(record, range(1, 9)) adds lines to a run's journal, as of a second per step since `begin`."""

    def write(record: RunRecord, steps: Iterable[int], begin: float = 1000.0) -> None:
        with record.journal.open("a", encoding="utf-8") as file:
            for step in steps:
                line = {"step": step, "tokens": 64 * step, "time": begin + step, "loss": 1 / step}
                file.write(json.dumps(line | {"tokens_per_second": 100.0 + step}) + "\n")

    return write


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new sqlite store, made once: its migrations take seconds."""

    def build(folder: Path) -> None:
        from tinyllama.lineage.mlflow import open_store

        open_store(f"sqlite:///{folder / 'mlflow.db'}")

    return shared_folder(tmp_path_factory, "store", build) / "mlflow.db"


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    """The URI of a store of this test alone."""
    return f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"
