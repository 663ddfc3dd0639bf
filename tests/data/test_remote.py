"""Remotes that fail, come back, or send what is damaged; and a cache whose disk is full."""

import json
import os
import shutil
import subprocess
import threading
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from tinyllama.data import loader
from tinyllama.data.loader import train_loader
from tinyllama.data.streaming import ShardStore
from tinyllama.errors import ConfigError, DamageError
from tinyllama.planning.mixture import Mixture
from tinyllama.planning.order import SampleOrder
from tinyllama.world import World

MIXTURE = Mixture(["slim", "star"], [(0, {"slim": 2, "star": 1})])
STOP = 904
"""A little more than one epoch of slim and two of star."""


@pytest.fixture(autouse=True)
def short_sight(monkeypatch):
    """Shards are fetched some steps before they are read, not all at the start."""
    monkeypatch.setattr(loader, "_CHUNK_SAMPLES", 40)


def shards(folder):
    return json.loads((folder / "index.json").read_text())["shards"]


@pytest.fixture
def order(packed):
    sizes = {name: [shard["samples"] for shard in shards(packed[name])] for name in MIXTURE.names}
    return SampleOrder(MIXTURE, sizes, seed=1, window=3)


@pytest.fixture
def cache(tmp_path):
    return {name: tmp_path / "cache" / name for name in MIXTURE.names}


@pytest.fixture
def remote(request, tmp_path):
    """A folder of both corpora, to be damaged."""
    source = request.getfixturevalue(getattr(request, "param", "compressed"))
    for name in MIXTURE.names:
        shutil.copytree(source[name], tmp_path / "remote" / name)
    return tmp_path / "remote"


raw_or_compressed = pytest.mark.parametrize("remote", ["packed", "compressed"], indirect=True)


def remotes(root):
    return {name: f"{root}/{name}" for name in MIXTURE.names}


def read(order, cache, remote, **settings):
    batches = train_loader(
        order,
        cache,
        **{"micro_batch": 4, "world": World(), "start": 0, "stop": STOP, "run_id": "remote", "remotes": remotes(remote)}
        | settings,
    )
    found = []
    for batch in batches:
        assert (batch.tokens[:, 0] == batch.corpus).all()
        assert (batch.tokens[:, 1] == batch.sample_id).all()
        found += batch.sample_id.tolist()
    return found


def planned(order):
    return order.samples(np.arange(STOP)).sample_id.tolist()


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "index.json")


# ---------------------------------------------------------------- a remote over HTTP


class Bucket(SimpleHTTPRequestHandler):
    """An S3 bucket over a folder, as far as downloads need it; answers fail in turn as the server's `faults` say."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        path = self.server.folder / self.path.split("?")[0].removeprefix("/bucket/")
        fault = self.server.next_fault(path.name) if body else None
        if fault is not None and fault.isdigit():
            self._send(int(fault), b"", 0)
            return
        content = path.read_bytes()
        if fault == "drop":
            self._send(200, content[: len(content) // 2], len(content))
            self.close_connection = True
        elif fault == "flip":
            self._send(200, bytes([content[0] ^ 1]) + content[1:], len(content))
        else:
            self._send(200, content if body else b"", len(content))

    def _send(self, status, content, length):
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", '"none"')
        self.send_header("Last-Modified", "Wed, 01 Jan 2025 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder, faults):
        super().__init__(("127.0.0.1", 0), Bucket)
        self.folder, self.faults, self.asked, self.lock = folder, faults, [], threading.Lock()

    def next_fault(self, name):
        with self.lock:
            self.asked.append(name)
            waiting = self.faults.get(name, [])
            return waiting.pop(0) if waiting else None


@pytest.fixture
def bucket(monkeypatch):
    """bucket(folder, {"shard.00001.mds": ["503", "drop", "flip"]}) serves the folder as s3://bucket."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # so that each fault reaches us
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    @contextmanager
    def serve(folder, faults):
        with Server(folder, faults) as server:
            monkeypatch.setenv("S3_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            yield server
            server.shutdown()
            thread.join()

    return serve


@pytest.mark.slow
@raw_or_compressed
def test_a_server_that_fails_breaks_off_and_sends_damage_is_asked_until_all_is_right(order, cache, remote, bucket):
    first, second, third = files(remote / "slim")[:3]
    faults = {"index.json": ["500"], first: ["503", "drop"], second: ["flip"], third: ["404"]}
    with bucket(remote, faults) as server:
        assert read(order, cache, "s3://bucket", workers=0) == planned(order)
    assert not any(faults.values())
    assert server.asked.count(first) >= 3
    assert not [path for folder in cache.values() for path in folder.iterdir() if path.suffix not in (".mds", ".json")]


@pytest.mark.slow
def test_worker_processes_fetch_over_connections_of_their_own(order, cache, remote, bucket):
    with bucket(remote, {files(remote / "slim")[1]: ["drop"]}):
        assert read(order, cache, "s3://bucket", workers=2) == planned(order)


@pytest.mark.slow
def test_a_server_that_stays_away_is_named_once_patience_ends(order, cache, remote, bucket):
    with (
        bucket(remote, {name: ["503"] * 1000 for name in files(remote / "slim")}),
        pytest.raises(
            DamageError, match=r"corpora.\w+: s3://bucket/\w+/shard\S+ cannot be fetched .*503.*, tried \d+ times"
        ),
    ):
        read(order, cache, "s3://bucket", patience_seconds=2.0)


# ---------------------------------------------------------------- a remote that is a folder


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_remote_that_goes_and_comes_back_costs_nothing_but_time(order, cache, remote, workers, caplog):
    away = remote.with_name("away")
    batches = train_loader(
        order, cache, micro_batch=4, world=World(), start=0, stop=STOP, run_id="remote", remotes=remotes(remote),
        workers=workers,
    )  # fmt: skip
    found = next(batches).sample_id.tolist()
    remote.rename(away)
    back = threading.Timer(2.5, lambda: away.rename(remote))
    back.start()
    found += [sample for batch in batches for sample in batch.sample_id.tolist()]
    back.join()
    assert found == planned(order)
    if not workers:  # else it is said in another process
        assert "cannot be fetched (FileNotFoundError" in caplog.text


def test_a_run_that_is_left_while_it_asks_a_remote_again_does_not_wait_for_it(order, cache, remote):
    ends = {name: np.cumsum(order.shard_samples[name]) for name in MIXTURE.names}

    def used(start):
        samples = order.samples(np.arange(start, start + 40))
        return set(np.searchsorted(ends["slim"], samples.sample_id[samples.corpus == 0], side="right").tolist())

    names = files(remote / "slim")
    for shard in used(40) - used(0):
        (remote / "slim" / names[shard]).unlink()
    batches = train_loader(
        order, cache, micro_batch=4, world=World(), start=0, stop=STOP, run_id="remote", remotes=remotes(remote),
        patience_seconds=1e9,
    )  # fmt: skip
    next(batches)
    leaving = threading.Thread(target=batches.close, daemon=True)
    leaving.start()
    leaving.join(60)
    assert not leaving.is_alive()


def test_what_a_killed_run_left_half_fetched_does_not_pass_for_the_whole(order, cache, remote):
    for name, folder in cache.items():
        folder.mkdir(parents=True)
        (folder / "index.json.tmp").write_bytes((remote / name / "index.json").read_bytes()[:100])
        shard = (remote / name / files(remote / name)[0]).read_bytes()
        (folder / files(remote / name)[0]).write_bytes(shard[: len(shard) // 2])
    assert read(order, cache, remote) == planned(order)


@raw_or_compressed
def test_a_shard_that_its_remote_holds_damaged_is_fetched_three_times_and_then_named(order, cache, remote, caplog):
    name = files(remote / "slim")[3]
    content = bytearray((remote / "slim" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (remote / "slim" / name).write_bytes(content)
    with pytest.raises(DamageError, match=rf"corpora.slim: shard .*/slim/{name.removesuffix('.zstd')} .*3 times"):
        read(order, cache, remote)
    assert caplog.text.count("it is fetched again") == 3


@pytest.mark.slow
def test_two_ranks_both_tell_of_a_shard_that_cannot_be_had_and_neither_waits_for_the_other(
    order, cache, remote, on_ranks
):
    (remote / "slim" / files(remote / "slim")[3]).unlink()

    def work(world):
        with pytest.raises(DamageError, match=r"corpora.slim: .* cannot be fetched"):
            read(order, cache, remote, world=world, workers=world.rank, patience_seconds=1.5)

    on_ranks(2, work)


def damage(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
@raw_or_compressed
def test_a_cached_shard_that_was_damaged_is_fetched_again_by_two_ranks_at_once(order, cache, remote, on_ranks):
    read(order, cache, remote)
    for place, path in enumerate(sorted(cache["slim"].glob("*.mds"))):
        if place % 3 == 0:
            damage(path, place)
        elif place % 3 == 1:
            path.unlink()
        else:
            os.truncate(path, 99)
    found = on_ranks(2, lambda world: read(order, cache, remote, world=world, workers=1))
    by_rank = np.array(found).reshape(2, -1, 4).swapaxes(0, 1)
    assert by_rank.ravel().tolist() == planned(order)


def test_an_address_that_nothing_can_fetch_from_is_refused(cache):
    with pytest.raises(ConfigError, match="corpora.slim: gopher://somewhere/slim is no remote"):
        ShardStore(cache, world=World(), run_id="remote", remotes=remotes("gopher://somewhere"))


# ---------------------------------------------------------------- a full disk


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 44 KiB: about half of what the corpora take."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=44k", "none", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting takes root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@raw_or_compressed
def test_on_a_full_disk_the_shards_that_were_not_read_for_longest_make_room(order, remote, small_disk, caplog):
    cache = {name: small_disk / name for name in MIXTURE.names}
    assert read(order, cache, remote) == planned(order)
    assert "the disk is full" in caplog.text


def fill(path):
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(512))


def test_a_disk_that_others_have_filled_is_named_with_what_to_free(order, remote, small_disk):
    cache = {name: small_disk / name for name in MIXTURE.names}
    for name, folder in cache.items():
        folder.mkdir()
        shutil.copy(remote / name / "index.json", folder)
    fill(small_disk / "others")
    with pytest.raises(
        DamageError, match=r"corpora.s\w+: shard .* cannot be cached: the disk is full .*; free [\d.]+\w+ there"
    ):
        read(order, cache, remote)
