"""Libraries that commands and modules do not load: seconds for everybody who types them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

Loaded = Callable[..., list[str]]

COMMANDS = [
    ("train", ["--cfg", "job"]),
    ("train", ["--help"]),
    ("train", ["stage=continual"]),
    ("train", ["-m", "stage=basic,continual"]),
    ("train", ["-m", "stage=basic,continual", "cluster=slurm"]),
    ("plan", ["stage=basic", "format=json"]),
    ("plan", ["+variant=chinese", "stage=basic,continual", "format=json"]),
    ("prepare", ["--help"]),
    ("prepare", ["hydra/launcher=slurm"]),
    ("cancel", []),
    ("sample", ["--help"]),
    ("export", ["--help"]),
    ("evaluate", ["--help"]),
    ("generate", ["--help"]),
    ("generate", ["+variant=standard,chinese", "generation.top_k=0", "prompt=the river"]),
    ("report", ["--help"]),
]

TRACK = """
from pathlib import Path
from tinyllama.config.schema import TrackingConfig
from tinyllama.lineage import build_tracker
build_tracker(TrackingConfig(name="mlflow"), Path("runs"))
"""

STATEMENTS = {
    "pictures": ("import tinyllama.reporting.plots", ["matplotlib"]),
    "a tracker in the process that trains": (TRACK, ["mlflow", "torch", "pandas"]),
    "streaming": (
        "import tinyllama.data.streaming; from tinyllama.data.mds import MDSWriter, Stream, StreamingDataset",
        ["torchvision", "transformers", "streaming.text"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("command, arguments", COMMANDS, ids=lambda value: value if isinstance(value, str) else None)
def test_commands_that_need_no_torch_load_no_heavy_library(
    loaded_by: Loaded, tmp_path: Path, command: str, arguments: Sequence[str]
) -> None:
    libraries = ["torch", "deepspeed", "mlflow", "streaming", "transformers"]
    statement = f"from tinyllama.{command} import main; main()"
    assert loaded_by(statement, *libraries, arguments=arguments, cwd=tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("statement, libraries", STATEMENTS.values(), ids=STATEMENTS)
def test_modules_load_no_library_before_they_use_it(
    loaded_by: Loaded, tmp_path: Path, statement: str, libraries: Sequence[str]
) -> None:
    assert loaded_by(statement, *libraries, cwd=tmp_path) == []


def test_a_library_that_one_statement_loads_is_seen_there_and_not_in_the_next(loaded_by: Loaded) -> None:
    assert loaded_by("import tinyllama.units, sqlite3", "sqlite3", "torch") == ["sqlite3"]
    assert loaded_by("import tinyllama.units", "sqlite3", "torch") == []
