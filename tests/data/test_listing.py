import os
import sys
import threading
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
import requests

from tinyllama.data import listing
from tinyllama.data.listing import RawFile, fetched, find_files
from tinyllama.errors import ConfigError


def lay(root, *names) -> None:
    """Files that hold their names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


@pytest.fixture(autouse=True)
def new_drivers():
    """A driver goes on asking the server that it was made for."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def web(tmp_path):
    """web(Handler) serves the folder web/ by HTTP, and gives its address."""
    servers = []

    def serve(handler=SimpleHTTPRequestHandler):
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path / "web")))
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return "http://{}:{}".format(*server.server_address)

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def at_once(monkeypatch):
    """Further attempts without waiting; the list has the waits there would have been."""
    waits = []
    monkeypatch.setattr(listing.time, "sleep", waits.append)
    return waits


# ---------------------------------------------------------------- on this machine


def test_files_come_in_the_order_of_the_globs_and_by_name_and_none_twice(tmp_path, corpus):
    lay(tmp_path, "b/2.jsonl", "b/1.jsonl", "a/3.jsonl")
    globs = [f"{tmp_path}/b/*.jsonl", f"{tmp_path}/*/*.jsonl"]
    found = find_files(corpus(files=globs))
    assert [os.path.relpath(file.path, tmp_path) for file in found] == ["b/1.jsonl", "b/2.jsonl", "a/3.jsonl"]
    assert [file.glob for file in found] == [globs[0], globs[0], globs[1]]


def test_a_listing_tells_sizes_and_times(tmp_path, corpus):
    lay(tmp_path, "a.jsonl")
    os.utime(tmp_path / "a.jsonl", ns=(1, 1_700_000_000_123_456_789))
    assert find_files(corpus(files=[f"file://{tmp_path}/*.jsonl"])) == [
        RawFile(f"{tmp_path}/a.jsonl", 7, 1_700_000_000_123_456_789)
    ]


def test_globs_reach_into_folders_at_any_depth_and_know_the_home_folder(tmp_path, corpus, monkeypatch):
    lay(tmp_path, "raw/a/b/c/1.jsonl", "raw/2.jsonl")
    monkeypatch.setenv("HOME", str(tmp_path))
    found = find_files(corpus(files=["~/raw/**/*.jsonl"]))
    assert [file.path for file in found] == [f"{tmp_path}/raw/2.jsonl", f"{tmp_path}/raw/a/b/c/1.jsonl"]


@pytest.mark.parametrize(
    "glob, complaint",
    [
        ("none/*.jsonl", r"corpora.tales.files=.*/none/\*.jsonl matches no file; .*tinyllama.sample"),
        ("raw", r"corpora.tales.files=.*/raw matches only folders; .*FOLDER/\*.jsonl"),
        ("gone.jsonl", "corpora.tales.files=.*/gone.jsonl cannot be listed .*No such file"),
    ],
)
def test_each_glob_must_match_files(tmp_path, corpus, glob, complaint):
    lay(tmp_path, "raw/1.jsonl")
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=complaint):
        find_files(corpus(files=[f"{tmp_path}/raw/*.jsonl", f"{tmp_path}/{glob}"]))


def test_a_local_file_is_used_where_it_is(tmp_path):
    lay(tmp_path, "a.jsonl")
    with fetched(RawFile.listed(tmp_path / "a.jsonl"), tmp_path / "scratch") as content:
        assert content.path == tmp_path / "a.jsonl"
        assert content.sha256 == sha256(b"a.jsonl").hexdigest()
    assert (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize("change", [lambda path: path.write_text("other"), lambda path: path.unlink()])
def test_a_file_that_changes_after_it_was_listed_is_refused(tmp_path, when, change):
    lay(tmp_path, "a.jsonl")
    file = RawFile.listed(tmp_path / "a.jsonl")
    if when == "before":
        change(tmp_path / "a.jsonl")
    with pytest.raises(ConfigError, match=r"a.jsonl changed since it was listed"), fetched(file, tmp_path):
        change(tmp_path / "a.jsonl")


def test_a_file_that_the_disk_does_not_give_is_named():
    memory = RawFile.listed("/proc/self/mem")  # opens, and cannot be read from its beginning
    with (
        pytest.raises(ConfigError, match=r"/proc/self/mem cannot be read .*Input/output error"),
        fetched(memory, Path()),
    ):
        pass


# ---------------------------------------------------------------- on an object store


def test_an_object_store_is_listed_and_read_like_a_folder(tmp_path, corpus, object_store):
    lay(tmp_path / "raw", "chunk1/a.jsonl", "chunk2/a.jsonl", "chunk2/b.txt")
    object_store.upload(tmp_path / "raw", "raw")
    files = find_files(corpus(files=[f"{object_store.address}/raw/chunk*/*.jsonl", f"{object_store.address}/raw/**"]))
    names = ["chunk1/a.jsonl", "chunk2/a.jsonl", "chunk2/b.txt"]
    assert [file.path for file in files] == [f"{object_store.address}/raw/{name}" for name in names]
    assert [file.bytes for file in files] == list(map(len, names))
    assert all(file.modified_ns and file.tag for file in files)
    with fetched(files[1], tmp_path / "scratch") as content:
        assert content.path.read_text() == "chunk2/a.jsonl"
        assert content.sha256 == sha256(b"chunk2/a.jsonl").hexdigest()
    assert list((tmp_path / "scratch").iterdir()) == []


def test_an_object_is_listed_alike_alone_and_among_others(tmp_path, corpus, object_store):
    lay(tmp_path / "raw", "a.jsonl", "b.jsonl")
    object_store.upload(tmp_path / "raw", "alike")
    (file,) = find_files(corpus(files=[f"{object_store.address}/alike/a.jsonl"]))
    assert file == find_files(corpus(files=[f"{object_store.address}/alike/*"]))[0]


def test_an_object_of_the_same_size_that_took_its_place_is_noticed(tmp_path, corpus, object_store):
    lay(tmp_path / "raw", "a.jsonl")
    object_store.upload(tmp_path / "raw", "same")
    (before,) = find_files(corpus(files=[f"{object_store.address}/same/*"]))
    (tmp_path / "raw" / "a.jsonl").write_text("b.jsonl")
    object_store.upload(tmp_path / "raw", "same")
    (after,) = find_files(corpus(files=[f"{object_store.address}/same/*"]))
    assert after.bytes == before.bytes
    assert after.tag != before.tag
    with (
        pytest.raises(ConfigError, match=r"s3://corpora/same/a.jsonl changed since it was listed"),
        fetched(before, tmp_path),
    ):
        pass


def test_a_refusal_is_named_and_is_no_empty_folder(tmp_path, corpus, object_store):
    lay(tmp_path / "raw", "chunk1/a.jsonl")
    object_store.upload(tmp_path / "raw", "closed")
    address = f"{object_store.address}/closed"
    (file,) = find_files(corpus(files=[f"{address}/*/*.jsonl"]))
    requests.post(f"{object_store.endpoint}/moto-api/reset-auth", data=b"0")  # from now on keys are looked at
    try:
        for glob in ("*/*.jsonl", "**", "chunk1/a.jsonl"):
            with pytest.raises(ConfigError, match=r"s3://corpora/closed/.* cannot be listed .*; .*credentials"):
                find_files(corpus(files=[f"{address}/{glob}"]))
        with pytest.raises(ConfigError, match=r"a.jsonl cannot be fetched .*; .*credentials"), fetched(file, tmp_path):
            pass
    finally:
        requests.post(f"{object_store.endpoint}/moto-api/reset-auth", data=b"inf")


@pytest.mark.parametrize("address", ["s3://corpora/none/*.jsonl", "s3://corpora/none.jsonl", "s3://nowhere/*.jsonl"])
def test_an_address_must_match_files(corpus, object_store, address):
    with pytest.raises(ConfigError) as raised:
        find_files(corpus(files=[address]))
    assert str(raised.value) == f"corpora.tales.files={address} matches no file; see that the address is right"


def test_missing_credentials_are_named(corpus, monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ConfigError, match=r"corpora.tales.files=s3://corpora/\* cannot be listed .*; .*credentials"):
        find_files(corpus(files=["s3://corpora/*"]))


# ---------------------------------------------------------------- on the web


def test_the_web_is_listed_and_read_too(tmp_path, corpus, web):
    lay(tmp_path / "web", "raw/a.jsonl", "raw/b.jsonl", "raw/c.txt")
    address = web()
    files = find_files(corpus(files=[f"{address}/raw/*.jsonl", f"{address}/raw/c.txt"]))
    assert [file.path for file in files] == [f"{address}/raw/{name}" for name in ("a.jsonl", "b.jsonl", "c.txt")]
    assert [file.bytes for file in files] == [11, 11, 9]
    assert all("GMT" in file.tag for file in files)
    with fetched(files[1], tmp_path / "scratch") as content:
        assert content.path.read_text() == "raw/b.jsonl"


class Forgetful(SimpleHTTPRequestHandler):
    """Knows no more of a folder that its parent names."""

    def do_GET(self):
        if self.path.startswith("/raw/b"):
            self.send_error(404)
        else:
            super().do_GET()


def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path, corpus, web):
    lay(tmp_path / "web", "raw/a/1.jsonl", "raw/b/2.jsonl")
    with pytest.raises(ConfigError, match=r"raw/\*/\*.jsonl cannot be listed .*raw/b"):
        find_files(corpus(files=[f"{web(Forgetful)}/raw/*/*.jsonl"]))


def test_only_folders_that_a_glob_leads_through_are_listed(tmp_path, corpus, web):
    lay(tmp_path / "web", "raw/a/x/1.jsonl", "raw/b/x/2.jsonl", "raw/a/y/3.jsonl", "raw/a/x/deep/4.jsonl")
    found = find_files(corpus(files=[f"{web(Forgetful)}/raw/a*/x*/*.jsonl"]))  # raw/b would not do
    assert [file.path.split("/raw/")[1] for file in found] == ["a/x/1.jsonl"]


class Broken(SimpleHTTPRequestHandler):
    """Breaks off in the middle of the first `failures` files that are asked for."""

    failures = 2

    def do_GET(self):
        if Broken.failures <= 0:
            super().do_GET()
            return
        Broken.failures -= 1
        self.send_response(200)
        self.send_header("Content-Length", str(os.path.getsize(self.translate_path(self.path))))
        self.end_headers()
        self.wfile.write(b"raw")


class Short(SimpleHTTPRequestHandler):
    """Sends less than there is as if it were all."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"raw")


def test_a_download_that_breaks_off_is_tried_again(tmp_path, corpus, web, at_once, monkeypatch):
    monkeypatch.setattr(Broken, "failures", 2)
    lay(tmp_path / "web", "raw/a.jsonl")
    (file,) = find_files(corpus(files=[f"{web(Broken)}/raw/a.jsonl"]))
    with fetched(file, tmp_path / "scratch") as content:
        assert content.path.read_text() == "raw/a.jsonl"
    assert at_once == list(listing.WAITS_SECONDS[:2])


def test_a_download_that_never_is_whole_is_given_up(tmp_path, corpus, web, at_once):
    lay(tmp_path / "web", "raw/a.jsonl")
    (file,) = find_files(corpus(files=[f"{web(Short)}/raw/a.jsonl"]))
    with (
        pytest.raises(ConfigError, match=r"raw/a.jsonl cannot be fetched \(OSError: only 3 of 11 bytes arrived\)"),
        fetched(file, tmp_path / "scratch"),
    ):
        pass
    assert at_once == list(listing.WAITS_SECONDS)
    assert list((tmp_path / "scratch").iterdir()) == []


class Closed(SimpleHTTPRequestHandler):
    """Lets nobody in."""

    def do_GET(self):
        self.send_error(403)

    def do_HEAD(self):
        self.send_error(403)


def test_a_server_that_refuses_is_not_asked_again(tmp_path, corpus, web, at_once):
    lay(tmp_path / "web", "raw/a.jsonl")
    address = f"{web(Closed)}/raw/a.jsonl"
    with pytest.raises(ConfigError, match=r"corpora.tales.files=http.*a.jsonl cannot be listed .*403.*credentials"):
        find_files(corpus(files=[address]))
    with (
        pytest.raises(ConfigError, match=r"a.jsonl cannot be fetched .*403.*credentials"),
        fetched(RawFile(address, 11, 0), tmp_path),
    ):
        pass
    assert at_once == []


def test_a_server_that_cannot_be_reached_is_named(corpus):
    with pytest.raises(ConfigError, match=r"corpora.tales.files=http://127.0.0.1:9/\* cannot be listed .*reaches it"):
        find_files(corpus(files=["http://127.0.0.1:9/*"]))


# ---------------------------------------------------------------- drivers


def test_a_driver_that_is_not_installed_is_named(corpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not there
    with pytest.raises(ConfigError, match=r"corpora.tales.files=gs://corpora/\* wants a driver .* install gcsfs"):
        find_files(corpus(files=["gs://corpora/*"]))


def test_an_address_that_no_driver_knows_is_refused(corpus):
    with pytest.raises(ConfigError, match=r"corpora.tales.files=shelf://corpora/\* wants a driver .*: .*shelf"):
        find_files(corpus(files=["shelf://corpora/*"]))


def test_any_driver_of_fsspec_serves(tmp_path, corpus):
    memory = fsspec.filesystem("memory")
    memory.pipe({"/shelf/a.jsonl": b"one", "/shelf/b.jsonl": b"second"})
    try:
        files = find_files(corpus(files=["memory://shelf/*.jsonl"]))
        assert [(file.path, file.bytes) for file in files] == [
            ("memory:///shelf/a.jsonl", 3),
            ("memory:///shelf/b.jsonl", 6),
        ]
        with fetched(files[1], tmp_path) as content:
            assert content.path.read_bytes() == b"second"
    finally:
        memory.rm("/shelf", recursive=True)
