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
