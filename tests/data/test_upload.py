"""Corpora that are brought to a remote and found there: what lies where, what is sent, what a cut leaves."""

import itertools
import json
import os
import shutil
import signal
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from tests.data.conftest import SEQ_LEN
from tests.data.versions import write_version
from tinyllama.config.schema import PathsConfig
from tinyllama.data import remote_corpora
from tinyllama.data.inventory import chosen_folder, take_inventory
from tinyllama.data.loader import train_loader
from tinyllama.data.manifest import read_manifest
from tinyllama.data.remote import fetch_first
from tinyllama.data.remote_files import RemoteFiles
from tinyllama.data.shards import require_fingerprint
from tinyllama.data.upload import upload_corpus
from tinyllama.errors import ConfigError, DamageError
from tinyllama.planning.mixture import Mixture
from tinyllama.planning.order import SampleOrder
from tinyllama.planning.views import View
from tinyllama.world import World

PLACE = "shards/small-8"


def tales(data: Path, samples: int) -> Path:
    """A version of the corpus `tales`: sample k of a split begins with the number of the split and k."""

    def split(number: int, count: int) -> np.ndarray:
        rows = np.tile(np.arange(SEQ_LEN + 1) + 7, (count, 1))
        rows[:, 0], rows[:, 1] = number, np.arange(count)
        return rows

    return write_version(data, "small", "tales", {"train": split(1, samples), "validation": split(2, 40)})


@pytest.fixture
def version(tmp_path) -> Path:
    return tales(tmp_path / "data", 200)


@pytest.fixture(params=["folder", "bucket"])
def remote(request, tmp_path) -> str:
    """An address of either kind."""
    if request.param == "folder":
        return str(tmp_path / "remote")
    return f"{request.getfixturevalue('object_store').address}/{tmp_path.name}"


@pytest.fixture
def here(compose, tmp_path, remote):
    """here(version=...) is a configuration of another machine that reads `tales` from the remote."""
    config = compose("+scale=demo")[-1]
    remote_corpora._fetched.cache_clear()

    def configure(address: str = remote, **settings):
        corpus = replace(config.corpora["slimpajama"], name="tales", **settings)
        return replace(
            config,
            corpora={"tales": corpus},
            tokenizer=replace(config.tokenizer, name="small"),
            packing=replace(config.packing, seq_len=SEQ_LEN),
            paths=PathsConfig(runs=str(tmp_path / "runs"), data=str(tmp_path / "here"), remote=address),
        )

    return configure


def listing(remote: str) -> dict[str, bytes]:
    files = RemoteFiles(remote)
    return {name: files.read(f"shards/{name}") for name in files.listing("shards")._files}


@pytest.mark.slow
def test_an_uploaded_corpus_is_found_fetched_verified_and_read_as_where_it_was_prepared(version, remote, here):
    upload_corpus(version, remote, "zstd:3")
    config = here()
    folder = chosen_folder(config, "tales")
    assert folder == Path(config.paths.data, "cache", PLACE, version.name)
    assert read_manifest(folder) == read_manifest(version)
    address = remote_corpora.remote_address(config, folder)
    for split in ("train", "validation"):
        fetch_first("tales", folder / split, f"{address}/{split}", 10, View(), patience_seconds=1)
    require_fingerprint(folder)
    first, *others = sorted((version / "validation").glob("*.mds"))
    assert (folder / "validation" / first.name).read_bytes() == first.read_bytes()
    assert not any((folder / "validation" / other.name).exists() for other in others)
    sizes = {"tales": read_manifest(version).train.shard_samples}
    order = SampleOrder(Mixture(["tales"], [(0, {"tales": 1})]), sizes, seed=1)
    batches = train_loader(
        order, {"tales": folder / "train"}, micro_batch=4, world=World(), start=0, stop=200, run_id="uploaded",
        remotes={"tales": f"{address}/train"},
    )  # fmt: skip
    found = [batch.tokens[:, 1].tolist() for batch in batches]
    assert sum(found, []) == order.samples(np.arange(200)).sample_id.tolist()


@pytest.mark.slow
def test_the_index_on_the_remote_describes_packed_shards_and_the_manifest_is_that_of_the_version(version, remote):
    upload_corpus(version, remote, "zstd:3")
    there = listing(remote)
    manifest = (version / "manifest.json").read_bytes()
    assert there["small-8/tales/manifest.json"] == there[f"small-8/{version.name}/manifest.json"] == manifest
    assert there[f"small-8/{version.name}/documents/train-0000.parquet"] == b"documents of 200"
    shards = {name for name in there if "/shard." in name}
    assert {name.removeprefix(f"small-8/{version.name}/") for name in shards} == {
        f"{path.relative_to(version)}.zstd" for path in version.rglob("*.mds")
    }
    (entry, *_) = json.loads(there[f"small-8/{version.name}/train/index.json"])["shards"]
    (local, *_) = json.loads((version / "train" / "index.json").read_bytes())["shards"]
    assert entry["raw_data"] == local["raw_data"]
    packed = there[f"small-8/{version.name}/train/{entry['zip_data']['basename']}"]
    assert (entry["compression"], entry["zip_data"]["bytes"]) == ("zstd:3", len(packed))


@pytest.mark.slow
def test_without_compression_the_shards_go_as_they_are(version, remote):
    upload_corpus(version, remote, None)
    there = listing(remote)
    for path in version.rglob("*"):
        if path.is_file() and path.name != "index.json":
            assert there[f"small-8/{path.relative_to(version.parent)}"] == path.read_bytes()


class Counted(RemoteFiles):
    """Remembers what was sent, and is cut off after so many files."""

    def __init__(self, address: str, cut: int | None = None):
        super().__init__(address)
        self.sent: list[str] = []
        self.cut = cut

    def write(self, name: str, content: bytes) -> None:
        if len(self.sent) == self.cut:
            raise ConfigError("cut off")
        super().write(name, content)
        self.sent.append(name)


@pytest.mark.slow
def test_an_upload_goes_on_where_it_was_cut_off_and_sends_again_what_is_not_as_it_should_be(
    version, remote, here, monkeypatch
):
    files = Counted(remote, cut=4)
    monkeypatch.setattr("tinyllama.data.upload.RemoteFiles", lambda address: files)
    monkeypatch.setattr("tinyllama.data.upload._AT_A_TIME", 1)
    with pytest.raises(ConfigError, match="cut off"):
        upload_corpus(version, remote, "zstd:3")
    assert read_manifest(chosen_folder(here(), "tales")) is None
    before, spoiled = set(files.sent), files.sent[2]
    RemoteFiles(remote).write(spoiled, files.read(spoiled)[::-1])
    files.cut, files.sent = None, []
    upload_corpus(version, remote, "zstd:3")
    assert before & set(files.sent) == {spoiled}
    whole = listing(remote)
    files.sent = []
    upload_corpus(version, remote, "zstd:3")
    assert files.sent == ["shards/small-8/tales/manifest.json"]
    assert listing(remote) == whole


def upload_and_be_killed(version: Path, remote: str, number: int) -> None:
    """Upload, in a process of its own, and be killed when the file of this number is written but not yet in place."""
    numbers, replace_file = itertools.count(1), os.replace

    def put(source: str, target: str) -> None:
        if next(numbers) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        replace_file(source, target)

    os.replace = put
    upload_corpus(version, remote, "zstd:9")


def test_an_upload_that_is_killed_at_any_file_leaves_no_version_and_is_whole_after_the_next(version, tmp_path):
    upload_corpus(version, str(tmp_path / "unbroken"), "zstd:9")
    whole = listing(str(tmp_path / "unbroken"))
    for number in range(1, len(whole) + 1):
        remote = str(tmp_path / f"killed-{number}")
        victim = get_context("fork").Process(target=upload_and_be_killed, args=(version, remote, number))
        victim.start()
        victim.join()
        assert victim.exitcode == -signal.SIGKILL
        assert not (Path(remote) / PLACE / "tales" / "manifest.json").exists()
        upload_corpus(version, remote, "zstd:9")
        left = {name: content for name, content in listing(remote).items() if not name.endswith(".writing")}
        assert left == whole


@pytest.mark.slow
def test_a_damaged_shard_is_not_uploaded(version, remote):
    path = next((version / "train").glob("*.mds"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamageError, match=rf"{path} is damaged"):
        upload_corpus(version, remote, None)
    assert "small-8/tales/manifest.json" not in listing(remote)


@pytest.mark.slow
def test_a_run_reads_the_latest_version_or_the_one_that_it_names(version, remote, here, tmp_path):
    upload_corpus(version, remote, None)
    newer = tales(tmp_path / "data", 240)
    upload_corpus(newer, remote, None)
    fingerprints = [read_manifest(folder).fingerprint for folder in (version, newer)]
    assert chosen_folder(here(), "tales").name == newer.name
    assert chosen_folder(here(version=fingerprints[0][:6]), "tales").name == version.name
    assert take_inventory([here(version=fingerprints[0])]).corpora["tales"].fingerprint == fingerprints[0]
    with pytest.raises(ConfigError, match=r"corpora.tales.version=zzzzzz is not known; valid: \w{12}, \w{12}"):
        chosen_folder(here(version="zzzzzz"), "tales")
    with pytest.raises(ConfigError, match="corpora.tales.version= fits .* give more of its digits"):
        chosen_folder(here(version=""), "tales")


@pytest.mark.parametrize("remote", ["folder"], indirect=True)
def test_a_version_that_was_fetched_by_its_name_is_read_while_the_remote_is_away(version, remote, here):
    upload_corpus(version, remote, None)
    config = here(version=read_manifest(version).fingerprint)
    folder = chosen_folder(config, "tales")
    shutil.rmtree(remote)
    remote_corpora._fetched.cache_clear()
    assert chosen_folder(config, "tales") == folder
    with pytest.raises(ConfigError, match=rf"paths.remote={remote} does not exist or holds nothing.*action=upload"):
        chosen_folder(here(), "tales")


def test_a_corpus_that_the_remote_lacks_counts_as_not_prepared(version, remote, here):
    upload_corpus(version, remote, None)
    config = here()
    other = replace(config, corpora={"other": replace(config.corpora["tales"], name="other")})
    assert not take_inventory([other]).corpora["other"].prepared


@pytest.mark.slow
@pytest.mark.parametrize(
    "address, message",
    [
        ("s3://nowhere/corpora", r"paths.remote=s3://nowhere/corpora .* no such place .*create the bucket"),
        ("gopher://somewhere", r"paths.remote=gopher://somewhere: .*choose a folder or an address"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_named_with_what_to_do(version, object_store, address, message):
    with pytest.raises(ConfigError, match=message):
        upload_corpus(version, address, None)


@pytest.mark.parametrize("remote", ["bucket"], indirect=True)
def test_a_server_that_does_not_answer_is_named_with_what_to_do(here, object_store, monkeypatch):
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"paths.remote=s3://corpora/x cannot be read .*AWS_ENDPOINT_URL"):
        chosen_folder(here("s3://corpora/x"), "tales")


def test_a_compression_that_is_not_known_is_refused(version, tmp_path):
    with pytest.raises(ConfigError, match="preparation.compression=brotli is not known; use zstd:LEVEL"):
        upload_corpus(version, str(tmp_path), "brotli")
