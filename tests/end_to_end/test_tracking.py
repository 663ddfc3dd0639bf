"""Training against a real MLflow server that is down, killed, broken or mute: nothing changes, nothing is lost."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.request import urlopen

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.forked import Forked
from tinyllama.config.schema import TrackingConfig
from tinyllama.lineage import deliver_pending
from tinyllama.lineage.outbox import Outbox

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("tracking")]

QUIET = {
    **os.environ,
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes that nobody needs
}


class Server:
    """`mlflow server` with a sqlite backend, which can be killed and started again."""

    def __init__(self, folder: Path, empty_store: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        shutil.copy(empty_store, folder / "mlflow.db")

    def start(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(self.port),
            "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db",
            "--artifacts-destination", str(self.folder / "artifacts"),
        ]  # fmt: skip
        with (self.folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env=QUIET, cwd=self.folder
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with suppress(OSError), urlopen(f"{self.uri}/health", timeout=5):
                return
            assert self._process.poll() is None, (self.folder / "log.txt").read_text()
            time.sleep(0.02)
        raise AssertionError("the server does not answer")

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class Front:
    """Stands before the server. "up" hands all through, "errors" answers 500, "mute" hears and says nothing; "down",
    as it begins, is nobody there."""

    def __init__(self, server: Server) -> None:
        self.port, self._server = free_port(), server
        self.uri = f"http://127.0.0.1:{self.port}"
        self._mode, self._open = "down", list[socket.socket]()

    def turn(self, mode: str) -> None:
        self._mode = mode
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._open = []
        if mode != "down":
            listener = socket.create_server(("127.0.0.1", self.port))
            self._open.append(listener)
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                self._open.append(connection)
                threading.Thread(target=self._answer, args=(connection, self._mode), daemon=True).start()

    def _answer(self, connection: socket.socket, mode: str) -> None:
        with suppress(OSError):
            if mode == "errors":
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 500 Broken\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                connection.close()
            elif mode == "up":
                behind = socket.create_connection(("127.0.0.1", self._server.port))
                self._open.append(behind)
                threading.Thread(target=_copy, args=(behind, connection), daemon=True).start()
                _copy(connection, behind)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError), closing(target):
        while data := source.recv(65536):
            target.sendall(data)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def server(store_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), store_template)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def front(server: Server) -> Iterator[Front]:
    front = Front(server)
    yield front
    front.turn("down")


@pytest.fixture(scope="module")
def undisturbed(settings, shell, tmp_path_factory) -> Path:
    """The directory of a run that nobody recorded."""
    runs = tmp_path_factory.mktemp("undisturbed")
    result = shell("train", *settings, f"paths.runs={runs}", "stage=basic", "trace=true")
    assert result.code == 0, result.err
    return run_folder(runs, "demo", "basic")


def run_folder(runs: Path, family: str, stage: str) -> Path:
    (folder,) = (runs / family).glob(f"{stage}-*")
    return folder


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def is_pending(folder: Path) -> bool:
    return any((folder / "outbox").glob("*.json"))


def run_of(server: Server, family: str, stage: str) -> Run | None:
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name(family)
    found = client.search_runs([experiment.experiment_id], f"tags.stage = '{stage}'") if experiment else []
    assert len(found) < 2
    return found[0] if found else None


def assert_complete(server: Server, folder: Path, family: str, stage: str, status: str = "FINISHED") -> Run:
    """The server has of a run what its directory has, each step once and with its time."""
    run, client, steps = run_of(server, family, stage), MlflowClient(server.uri), lines(folder)
    assert run is not None
    for name in ("loss", "tokens", "learning_rate"):
        history = client.get_metric_history(run.info.run_id, name)
        assert [(point.step, point.value) for point in history] == [(step["step"], step[name]) for step in steps]
    assert [point.timestamp / 1000 for point in history] == pytest.approx([step["time"] for step in steps], abs=0.002)
    assert run.info.status == status
    kept = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"identity.json", "plan.json", "config.yaml"} <= kept
    assert not is_pending(folder)
    return run


@pytest.mark.parametrize("trouble", ["errors", "mute"])
def test_a_server_in_trouble_changes_nothing_and_gets_everything_from_the_next_command(
    trouble: str, undisturbed: Path, server: Server, front: Front, small, shell, tmp_path: Path, monkeypatch
) -> None:
    family = f"family-{trouble}"
    command = [*small, "tracking=mlflow", f"family={family}", f"tracking.uri={front.uri}", "stage=basic", "trace=true"]
    front.turn(trouble)
    with monkeypatch.context() as impatient:
        impatient.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        result = shell("train", *command)
    assert result.code == 0, result.err
    assert result.err.count("nothing is lost") == 1
    assert "Traceback" not in result.err
    here = run_folder(tmp_path / "runs", family, "basic")
    assert [line["loss"] for line in lines(here)] == [line["loss"] for line in lines(undisturbed)]
    assert (here / "samples.jsonl").read_bytes() == (undisturbed / "samples.jsonl").read_bytes()
    assert is_pending(here)
    assert run_of(server, family, "basic") is None

    front.turn("up")
    result = shell("train", *command)
    assert result.code == 0, result.err
    assert "is done" in result.err
    assert f"what it had missed of {here.name}" in result.err
    run = assert_complete(server, here, family, "basic")
    (version,) = MlflowClient(server.uri).search_model_versions(f"name = '{family}'")
    assert version.run_id == run.info.run_id


def test_a_child_delivers_what_its_parent_could_not_and_finds_it_as_its_parent(
    undisturbed: Path, server: Server, front: Front, small, shell, tmp_path: Path
) -> None:
    command = [*small, "tracking=mlflow", "family=heirs", f"tracking.uri={front.uri}", "+variant=chinese"]
    result = shell("train", *command, "stage=basic")  # nobody is there
    assert result.code == 0, result.err
    assert result.err.count("nothing is lost") == 1 and "Traceback" not in result.err
    here = run_folder(tmp_path / "runs", "heirs", "basic")
    assert [line["loss"] for line in lines(here)] == [line["loss"] for line in lines(undisturbed)]
    assert is_pending(here)
    front.turn("up")
    result = shell("train", *command, "stage=continual")
    assert result.code == 0, result.err
    parent, child = (
        assert_complete(server, run_folder(tmp_path / "runs", "heirs", stage), "heirs", stage)
        for stage in ("basic", "continual")
    )
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    versions = {version.run_id: version for version in MlflowClient(server.uri).search_model_versions("name = 'heirs'")}
    assert versions[child.info.run_id].tags["parent_version"] == str(versions[parent.info.run_id].version)
    assert f"/runs/{parent.info.run_id})" in child.data.tags["mlflow.note.content"]


def test_a_server_that_is_killed_in_mid_run_and_started_again_has_every_step_once(
    server: Server, begin, small, tmp_path: Path
) -> None:
    endless = ["stage=basic", "stage.tokens=10M", "schedule.horizon_tokens=10M"]
    command = [*small, *endless, "tracking=mlflow", "family=endless", f"tracking.uri={server.uri}"]
    training = begin("train", *command)

    def recorded() -> int:
        run = run_of(server, "endless", "basic")
        return int(run.data.metrics.get("tokens", 0)) // 1024 if run else 0

    def trained() -> int:
        found = list((tmp_path / "runs").glob("endless/*/metrics.jsonl"))
        return found[0].read_text().count("\n") if found else 0

    try:
        wait_until(lambda: recorded() > 0, training)
        server.stop()
        down_at = trained()
        wait_until(lambda: trained() > down_at + 10, training)
        server.start()
        assert recorded() <= down_at
        wait_until(lambda: recorded() > down_at + 10, training)
        training.send_signal(signal.SIGTERM)
        _, err = training.communicate(timeout=200)
    finally:
        training.kill()
    assert training.returncode == 75, err
    folder = run_folder(tmp_path / "runs", "endless", "basic")
    for _ in range(10):  # each call gives up after a while
        if not Outbox(folder / "outbox").is_empty():
            deliver_pending(TrackingConfig(name="mlflow", uri=server.uri), tmp_path / "runs", folder / "outbox")
    assert_complete(server, folder, "endless", "basic", "KILLED")


def wait_until(holds: Callable[[], bool], training: Forked) -> None:
    while not holds():
        assert training.poll() is None, training.communicate()[1]
        time.sleep(0.02)
