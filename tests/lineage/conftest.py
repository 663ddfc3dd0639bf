import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tinyllama.lineage import Dataset, RunRecord

MakeRecord = Callable[..., RunRecord]


@pytest.fixture
def make_record(tmp_path: Path) -> MakeRecord:
    """A record of a stage whose digest and parent's digest are repeated letters."""

    def make(stage: str, letter: str, parent: str | None = None, **changes: object) -> RunRecord:
        values: dict[str, object] = {
            "family": "llamas",
            "stage": stage,
            "variants": ("standard",),
            "digest": 64 * letter,
            "parent_digest": None if parent is None else 64 * parent,
            "params": {"model.num_layers": 4, "optimizer.learning_rate": 4e-4},
            "datasets": (Dataset("slimpajama", 64 * "f", "data/slimpajama", 1000),),
            "git_commit": "0123abc",
            "directory": tmp_path / "runs" / "llamas" / f"{stage}-{12 * letter}",
        }
        return RunRecord(**(values | changes))  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new sqlite store, made once: its migrations take seconds."""
    from tinyllama.lineage.mlflow import open_store

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_store(f"sqlite:///{path}")
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    """The URI of a store of this test alone."""
    return f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"
