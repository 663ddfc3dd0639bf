"""The relay with a recorder that writes its calls to a file, and misbehaves as told."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tinyllama.lineage import RunRecord, relay
from tinyllama.lineage.relay import RelayTracker

MakeRecord = Callable[..., RunRecord]

RECORDER = '''
import json, os, sys, time
from pathlib import Path
from tinyllama.lineage.relay import detach, serve


class FileRecorder:
    """Fails with TimeoutError or ValueError, hangs or dies at the calls that `faults` names."""

    def __init__(self, path, faults):
        self.path, self.faults = Path(path), json.loads(faults)

    def _write(self, name, argument):
        print("noise")
        fault = self.faults.get(name)
        if fault == "down":
            self.faults.pop(name)
            raise TimeoutError("out of reach")
        if fault == "refuse":
            raise ValueError("no such thing")
        if fault == "slow":
            time.sleep(2)
        if fault == "hang":
            time.sleep(3600)
        if fault == "die":
            os._exit(1)
        with self.path.open("a") as file:
            print(json.dumps([name, argument]), file=file)

    def start(self, record):
        self._write("start", os.getpid())

    def metrics(self, measurements):
        self._write("metrics", [measurement.step for measurement in measurements])

    def artifact(self, path):
        self._write("artifact", path.name)

    def finish(self, status):
        self._write("finish", status)

    def is_temporary(self, error):
        return isinstance(error, TimeoutError)


def main(path, faults):
    incoming, outgoing = detach()
    serve(FileRecorder(path, faults), incoming, outgoing)
'''


class Scene:
    """A tracker whose recorder writes to `file`."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "calls.jsonl"

    def tracker(self, faults: str = "{}", patience_seconds: float = 30.0) -> RelayTracker:
        return RelayTracker("file_recorder", [str(self.file), faults], patience_seconds)

    def calls(self) -> list[list[Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []

    def wait_for(self, name: str) -> Any:
        """The argument of the first call of this name."""
        for _ in range(3000):
            for call, argument in self.calls():
                if call == name:
                    return argument
            time.sleep(0.01)
        raise AssertionError(f"no call of {name}: {self.calls()}")


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    (tmp_path / "file_recorder.py").write_text(RECORDER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Scene(tmp_path)


def run(tracker: RelayTracker, record: RunRecord) -> None:
    tracker.start(record)
    for step in range(1, 201):
        tracker.metrics(step, {"loss": 1.0})
    tracker.artifacts([Path("plan.json")])
    tracker.metrics(201, {"loss": 1.0})
    tracker.finish("FINISHED")


def test_calls_arrive_in_order_and_neighbouring_steps_together(
    scene: Scene, make_record: MakeRecord, capfd: pytest.CaptureFixture[str]
) -> None:
    run(scene.tracker(), make_record("basic", "a"))
    calls = scene.calls()
    metrics = [argument for name, argument in calls if name == "metrics"]
    assert [step for steps in metrics for step in steps] == list(range(1, 202))
    assert 2 <= len(metrics) < 20
    assert metrics[-1] == [201]
    assert [name for name, _ in calls if name != "metrics"] == ["start", "artifact", "finish"]
    assert calls[-3:] == [["artifact", "plan.json"], ["metrics", [201]], ["finish", "FINISHED"]]
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_what_was_logged_while_the_store_was_down_arrives_later(
    scene: Scene, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "STUCK_SECONDS", 0.5)
    tracker = scene.tracker('{"start": "down", "finish": "slow"}')
    tracker.start(make_record("basic", "a"))
    tracker.metrics(1, {"loss": 1.0})
    assert scene.wait_for("metrics") == [1]
    tracker.finish("KILLED")
    assert [name for name, _ in scene.calls()] == ["start", "metrics", "finish"]


def test_a_refused_call_is_named_once_and_the_others_are_carried_out(
    scene: Scene, make_record: MakeRecord, caplog: pytest.LogCaptureFixture
) -> None:
    run(scene.tracker('{"metrics": "refuse"}'), make_record("basic", "a"))
    assert [name for name, _ in scene.calls()] == ["start", "artifact", "finish"]
    assert ["failed to metrics: no such thing" in line for line in caplog.messages] == [True]


@pytest.mark.parametrize(
    "faults", ['{"start": "hang"}', '{"start": "die"}', '{"start": "refuse"}', '{"finish": "hang"}']
)
def test_no_recorder_can_hold_training_up(
    scene: Scene, make_record: MakeRecord, faults: str, caplog: pytest.LogCaptureFixture
) -> None:
    training = Thread(
        target=run, args=(scene.tracker(faults, patience_seconds=0.5), make_record("basic", "a")), daemon=True
    )
    training.start()
    training.join(timeout=60)
    assert not training.is_alive()
    assert len(caplog.messages) == 1


def test_a_signal_that_stops_training_does_not_stop_its_recorder(scene: Scene, make_record: MakeRecord) -> None:
    tracker = scene.tracker()
    tracker.start(make_record("basic", "a"))
    recorder = scene.wait_for("start")
    assert os.getsid(recorder) == recorder
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.kill(recorder, number)
    tracker.finish("KILLED")
    assert scene.calls()[-1] == ["finish", "KILLED"]


def test_a_run_whose_training_was_killed_is_closed_as_killed(scene: Scene, tmp_path: Path) -> None:
    program = f"""
import os, signal, sys, time
from pathlib import Path
sys.path.append({str(Path(__file__).parents[2])!r})
from tinyllama.lineage.relay import RelayTracker
tracker = RelayTracker("file_recorder", [{str(scene.file)!r}, "{{}}"])
tracker.start(None)
while not Path({str(scene.file)!r}).exists():
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    assert scene.wait_for("finish") == "KILLED"
