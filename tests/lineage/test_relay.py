"""The relay with a recorder that writes its calls to a file, and misbehaves as told."""

import fcntl
import json
import logging
import os
import pickle
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
from tinyllama.lineage.outbox import Letter, Outbox
from tinyllama.lineage.relay import Relay, RelayTracker

MakeRecord = Callable[..., RunRecord]
Live = Callable[..., None]

RECORDER = '''
import json, os, sys, time
from pathlib import Path
from tinyllama.lineage.delivery import detach, serve
from tinyllama.lineage.outbox import Outbox


class FileRecorder:
    """Fails with TimeoutError or ValueError, hangs or dies at the calls that `faults` names."""

    def __init__(self, path, faults):
        self.path, self.faults = Path(path), faults

    def _write(self, name, argument):
        print("noise")
        fault = self.faults.get(name)
        if fault == "down":
            self.faults.pop(name)
            raise TimeoutError("out of reach")
        if fault == "down while there is no file up":
            if not self.path.with_name("up").exists():
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
            print(json.dumps([self.stage, name, argument]), file=file)

    def start(self, record, milliseconds):
        self.stage = record.stage
        self._write("start", os.getpid())

    def metrics(self, measurements):
        self._write("metrics", [measurement.step for measurement in measurements])

    def artifact(self, path):
        self._write("artifact", path.name)

    def finish(self, status, milliseconds, typical_rate):
        self._write("finish", [status, milliseconds, typical_rate])

    def is_temporary(self, error):
        return isinstance(error, TimeoutError)


def main(path, faults, outbox):
    incoming, outgoing = detach()
    faults = json.loads(faults)
    serve(lambda: FileRecorder(path, faults), Outbox(Path(outbox)), None, incoming, outgoing)
'''


class Scene:
    """Trackers whose recorders write to `file`."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "calls.jsonl"

    def relay(self, faults: str = "{}", patience_seconds: float = 30.0) -> Relay:
        return Relay("file_recorder", [str(self.file), faults], patience_seconds)

    def tracker(self, faults: str = "{}", patience_seconds: float = 30.0) -> RelayTracker:
        return RelayTracker(self.relay(faults, patience_seconds), None)

    def calls(self, stage: str = "basic") -> list[list[Any]]:
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        return [call for of, *call in map(json.loads, lines) if of == stage]

    def wait_for(self, name: str) -> Any:
        """The argument of the first call of this name."""
        for _ in range(3000):
            for call, argument in self.calls():
                if call == name:
                    return argument
            time.sleep(0.01)
        raise AssertionError(f"no call of {name}: {self.calls()}")

    def steps(self, stage: str = "basic") -> list[int]:
        return [step for call, steps in self.calls(stage) if call == "metrics" for step in steps]

    def ends(self, stage: str = "basic") -> list[str]:
        """How a run was closed, each time."""
        return [argument[0] for call, argument in self.calls(stage) if call == "finish"]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    (tmp_path / "file_recorder.py").write_text(RECORDER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Scene(tmp_path)


@pytest.fixture
def live(write_steps: Callable[..., None]) -> Live:
    """live(tracker, record) is a life of a run with an artifact."""

    def live(tracker: RelayTracker, record: RunRecord, steps: range = range(1, 202)) -> None:
        tracker.start(record)
        write_steps(record, steps)
        (record.directory / "plan.json").write_text("{}")
        tracker.artifacts([record.directory / "plan.json"])
        tracker.finish("FINISHED")

    return live


@pytest.fixture
def leave_pending(write_steps: Callable[..., None]) -> Live:
    """leave_pending(record) does as a run whose store was down to the end."""

    def leave(record: RunRecord, status: Any = "FINISHED") -> None:
        write_steps(record, range(1, 31))
        Outbox(record.outbox).put(Letter(None, record, status=status))

    return leave


def is_pending(record: RunRecord) -> bool:
    return not Outbox(record.outbox).is_empty()


def test_all_arrives_and_nothing_stays_pending(
    scene: Scene, make_record: MakeRecord, capfd: pytest.CaptureFixture[str], live: Live
) -> None:
    record = make_record("basic", "a")
    live(scene.tracker(), record)
    assert scene.steps() == list(range(1, 202))
    assert [name for name, _ in scene.calls() if name != "metrics"] == ["start", "artifact", "finish"]
    assert scene.calls()[-1] == ["finish", ["FINISHED", 1_201_000, 100.0 + (6 + 201) / 2]]
    assert not is_pending(record)
    assert capfd.readouterr() == ("", "")


def test_what_was_measured_arrives_while_the_run_is_going(
    scene: Scene, make_record: MakeRecord, write_steps: Live
) -> None:
    record, tracker = make_record("basic", "a"), scene.tracker()
    tracker.start(record)
    write_steps(record, range(1, 4))
    assert scene.wait_for("metrics") == [1, 2, 3]
    assert is_pending(record)
    tracker.finish("KILLED")
    assert scene.ends() == ["KILLED"]


def test_an_artifact_that_changes_is_kept_as_it_is_at_the_end(scene: Scene, make_record: MakeRecord) -> None:
    record, tracker = make_record("basic", "a"), scene.tracker()
    tracker.start(record)
    for name in ("plan.json", "config.yaml"):
        (record.directory / name).write_text("partial")
    tracker.artifacts([record.directory / "plan.json", record.directory / "config.yaml", record.directory / "gone"])
    scene.wait_for("artifact")
    time.sleep(0.1)
    (record.directory / "plan.json").write_text("done")
    tracker.finish("FINISHED")
    artifacts = [argument for name, argument in scene.calls() if name == "artifact"]
    assert sorted(artifacts) == ["config.yaml", "plan.json", "plan.json"]
    assert not is_pending(record)


@pytest.mark.slow
def test_what_was_measured_while_the_store_was_down_arrives_later(
    scene: Scene, make_record: MakeRecord, write_steps: Live
) -> None:
    record = make_record("basic", "a")
    tracker = scene.tracker('{"start": "down", "metrics": "down", "finish": "slow"}')
    tracker.start(record)
    write_steps(record, range(1, 4))
    assert scene.wait_for("metrics") == [1, 2, 3]
    tracker.finish("KILLED")
    assert [name for name, _ in scene.calls()] == ["start", "metrics", "finish"]
    assert not is_pending(record)


def test_a_refused_call_is_named_once_the_others_are_carried_out_and_it_stays_pending(
    scene: Scene, make_record: MakeRecord, caplog: pytest.LogCaptureFixture, live: Live
) -> None:
    record = make_record("basic", "a")
    live(scene.tracker('{"metrics": "refuse"}'), record)
    assert {name for name, _ in scene.calls()} == {"start", "artifact", "finish"}
    warnings = [line.getMessage() for line in caplog.records if line.levelno == logging.WARNING]
    assert ["take metrics: no such thing" in line for line in warnings] == [True]
    assert is_pending(record)
    live(scene.tracker(), record, range(202, 211))
    assert scene.steps() == list(range(1, 211))
    assert not is_pending(record)


@pytest.mark.parametrize(
    "faults", ['{"start": "hang"}', '{"start": "die"}', '{"start": "refuse"}', '{"finish": "hang"}']
)
def test_no_recorder_can_hold_training_up_or_lose_anything(
    scene: Scene, make_record: MakeRecord, faults: str, caplog: pytest.LogCaptureFixture, live: Live
) -> None:
    record = make_record("basic", "a")
    training = Thread(target=live, args=(scene.tracker(faults, patience_seconds=0.5), record), daemon=True)
    training.start()
    training.join(timeout=60)
    assert not training.is_alive()
    assert len([line for line in caplog.records if line.levelno == logging.WARNING]) == 1
    assert is_pending(record)
    scene.file.unlink(missing_ok=True)
    relay = scene.relay()
    relay.start(record.outbox)
    relay.finish()
    assert scene.steps() == list(range(1, 202))
    assert scene.ends() == ["FINISHED"]
    assert not is_pending(record)


def test_a_store_that_is_out_of_reach_at_the_end_is_not_waited_for(
    scene: Scene, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch, live: Live
) -> None:
    monkeypatch.setattr(relay, "STUCK_SECONDS", 0.5)
    record = make_record("basic", "a")
    live(scene.tracker('{"start": "down while there is no file up"}', patience_seconds=600), record)
    assert scene.calls() == []
    assert is_pending(record)


def test_a_run_delivers_what_its_familys_other_runs_left_behind(
    scene: Scene, make_record: MakeRecord, caplog: pytest.LogCaptureFixture, live: Live, leave_pending: Live
) -> None:
    caplog.set_level(logging.INFO)
    parent, killed, own = make_record("root", "a"), make_record("cooldown", "b"), make_record("basic", "c")
    leave_pending(parent)
    leave_pending(killed, status=None)
    live(scene.tracker(), own)
    assert scene.steps("root") == scene.steps("cooldown") == list(range(1, 31))
    assert (scene.ends("root"), scene.ends("cooldown"), scene.ends()) == (["FINISHED"], ["KILLED"], ["FINISHED"])
    assert not any(is_pending(record) for record in (parent, killed, own))
    assert sum("root-aaaaaaaaaaaa" in line for line in caplog.messages) == 1


@pytest.mark.slow
def test_what_arises_while_the_store_is_down_arrives_in_the_same_life(
    scene: Scene, make_record: MakeRecord, tmp_path: Path, leave_pending: Live
) -> None:
    other, own = make_record("root", "a"), make_record("basic", "b")
    tracker = scene.tracker('{"start": "down while there is no file up"}')
    tracker.start(own)
    leave_pending(other)
    time.sleep(1.5)
    (tmp_path / "up").touch()
    scene.wait_for("start")
    tracker.finish("FINISHED")
    assert scene.ends("root") == ["FINISHED"]


def test_runs_that_are_trained_or_delivered_by_others_or_meant_for_another_store_are_left_alone(
    scene: Scene, make_record: MakeRecord, live: Live, leave_pending: Live
) -> None:
    trained, delivered, elsewhere = make_record("t", "a"), make_record("d", "b"), make_record("e", "c")
    leave_pending(trained, status="KILLED")
    leave_pending(delivered)
    Outbox(elsewhere.outbox).put(Letter("http://elsewhere", elsewhere, status="FINISHED"))
    holder = Outbox(delivered.outbox)
    assert holder.take()
    with trained.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        live(scene.tracker(), make_record("basic", "d"))
    for record in (trained, delivered, elsewhere):
        assert scene.calls(record.stage) == []
        assert is_pending(record)


def test_a_recorder_whose_run_lives_again_leaves_it_to_the_next(scene: Scene, make_record: MakeRecord) -> None:
    record = make_record("basic", "a")
    first = scene.tracker()
    first.start(record)
    scene.wait_for("start")
    Outbox(record.outbox).put(Letter(None, record))  # the run goes on in another process
    first._relay.finish()
    assert scene.ends() == []
    assert len(Outbox(record.outbox).letters(None)) == 2


def test_a_run_that_failed_before_it_began_leaves_nothing(scene: Scene) -> None:
    scene.tracker().finish("FAILED")
    assert scene.calls() == []


def test_a_signal_that_stops_training_does_not_stop_its_recorder(scene: Scene, make_record: MakeRecord) -> None:
    tracker = scene.tracker()
    tracker.start(make_record("basic", "a"))
    recorder = scene.wait_for("start")
    assert os.getsid(recorder) == recorder
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.kill(recorder, number)
    tracker.finish("KILLED")
    assert scene.ends() == ["KILLED"]


@pytest.mark.parametrize("done, status", [(False, "KILLED"), (True, "FINISHED")])
def test_a_run_whose_training_was_killed_is_closed_as_what_its_directory_shows(
    scene: Scene, make_record: MakeRecord, done: bool, status: str
) -> None:
    record = make_record("basic", "a")
    if done:
        record.done.touch()
    program = f"""
import os, pickle, signal, sys, time
from pathlib import Path
sys.path.append({str(Path(__file__).parents[2])!r})
from tinyllama.lineage.relay import Relay, RelayTracker
record = pickle.load(sys.stdin.buffer)
tracker = RelayTracker(Relay("file_recorder", [{str(scene.file)!r}, "{{}}"]), None)
tracker.start(record)
while not Path({str(scene.file)!r}).exists():
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], input=pickle.dumps(record), check=False)
    assert killed.returncode == -signal.SIGKILL
    assert scene.wait_for("finish")[0] == status
