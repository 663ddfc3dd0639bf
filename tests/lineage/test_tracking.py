import subprocess
import sys
from pathlib import Path

import pytest

from tinyllama.config.schema import TrackingConfig
from tinyllama.errors import ConfigError
from tinyllama.lineage import build_tracker
from tinyllama.lineage.null import NullTracker


def test_a_tracker_that_is_not_known_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.name=mlfow is not known; did you mean mlflow\?"):
        build_tracker(TrackingConfig(name="mlfow"), tmp_path)


def test_none_keeps_nothing(tmp_path: Path) -> None:
    tracker = build_tracker(TrackingConfig(name="none"), tmp_path)
    assert isinstance(tracker, NullTracker)
    tracker.finish("FINISHED")
    assert list(tmp_path.iterdir()) == []


def test_the_process_that_trains_never_imports_the_tracker() -> None:
    program = """
import sys
from pathlib import Path
from tinyllama.config.schema import TrackingConfig
from tinyllama.lineage import build_tracker
build_tracker(TrackingConfig(name="mlflow"), Path("runs"))
print(sorted({"mlflow", "torch", "pandas"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
