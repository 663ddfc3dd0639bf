"""A corpus on an S3 server, read by a run on two nodes that have nothing of it."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.data.versions import write_version
from tests.end_to_end.conftest import SMALL
from tests.object_store import ObjectStore
from tests.slurm.cluster import Slurm

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

SAMPLES, BATCH, SEQ_LEN = 4096, 512, 32
RUN = [
    *SMALL, "stage=basic", f"stage.tokens={SAMPLES * SEQ_LEN}", f"stage.batch_tokens={BATCH * SEQ_LEN}",
    "schedule.horizon_tokens=1M", "validation.every_tokens=1M", "checkpoint.every_tokens=1M", "cluster.micro_batch=64",
    "order.lanes=2", "trace=true", "tracking=none", "++corpora.slimpajama.max_epochs=2",
]  # fmt: skip
"""An epoch of the corpus, two lanes of it."""


CREATE_BUCKET = """
import socket, sys, time
import boto3

deadline = time.monotonic() + 60
while socket.socket().connect_ex(("10.0.0.254", 5000)):
    assert time.monotonic() < deadline, "the server does not listen"
    time.sleep(0.02)
boto3.client("s3").create_bucket(Bucket=sys.argv[1])
"""


@contextmanager
def served(slurm: Slurm, log: Path) -> Iterator[ObjectStore]:
    """An S3 server on the login host, which the nodes reach; it writes a line of each request, with who asked."""
    server = Path(sys.executable).with_name("moto_server")
    with log.open("w") as file:
        process = subprocess.Popen(
            slurm.inside(server, "-H", "10.0.0.254", "-p", "5000"), env=slurm.env, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
        try:
            store = ObjectStore("http://10.0.0.254:5000")
            created = slurm.run("python", "-c", CREATE_BUCKET, store.bucket, env=store.environment)
            assert created.code == 0, created.err + log.read_text()
            yield store
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # it has nothing to save
            process.wait()


def fetched(log: Path) -> dict[str, list[str]]:
    """The training shards that each address has asked for and got."""
    found = defaultdict(list)
    for line in log.read_text().splitlines():
        if match := re.match(r'(\S+) .*"GET \S+/train/(shard\S+) HTTP/1.1.*" 20\d', re.sub(r"\x1b\[\d+m", "", line)):
            found[match[1]].append(match[2])
    return dict(found)


def train_on(slurm: Slurm, nodes: list[str], env: dict[str, str], *overrides: str) -> None:
    """One rank per node, as torchrun would have it."""
    placed = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": nodes[0]}
    ranks = [
        subprocess.Popen(
            slurm.inside("python", "-m", "tinyllama.train", *overrides, "cluster.nodes=2", "cluster.processes=1",
                         host=node),
            env={**slurm.env, **env, **placed, "RANK": str(rank), "MASTER_PORT": "29700"},
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank, node in enumerate(nodes)
    ]  # fmt: skip
    ends = [rank.communicate(timeout=200)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(ends)


def trace(runs: Path) -> bytes:
    (path,) = runs.glob("demo/basic-*/samples.jsonl")
    return path.read_bytes()


def test_two_nodes_that_fetch_their_lanes_into_caches_of_half_the_corpus_read_what_is_read_from_local_shards(
    slurm, shell, tmp_path
):
    dice, data = np.random.default_rng(0), tmp_path / "data"
    sizes = {"train": SAMPLES, "validation": 8}
    splits = {split: dice.integers(3, 500, (count, SEQ_LEN + 1)) for split, count in sizes.items()}
    version = write_version(data, "demo", "slimpajama", splits, shard_bytes=4800)
    shards = {path.name: path.stat().st_size for path in (version / "train").glob("*.mds")}
    local = shell("train", *RUN, "cluster.processes=2", f"paths.data={data}", f"paths.runs={tmp_path / 'local'}")
    assert local.code == 0, local.err

    with served(slurm, tmp_path / "requests.txt") as store:
        remote = f"paths.remote={store.address}/prepared"
        sent = slurm.run(
            "python", "-m", "tinyllama.prepare", "action=upload", "corpus=slimpajama", *RUN, remote,
            f"paths.data={data}", env=store.environment,
        )  # fmt: skip
        assert sent.code == 0, sent.err
        nodes = slurm.nodes[:2]
        limit = sum(shards.values()) / 2 / 2**30
        train_on(
            slurm, nodes, store.environment, *RUN, remote, f"cluster.cache_gib={limit}",
            "paths.data=/tmp/corpora", f"paths.runs={tmp_path / 'remote'}",
        )  # fmt: skip
        kept = [
            slurm.run("find", "/tmp/corpora/cache", "-path", "*/train/*", "-printf", "%s ", host=node).out.split()
            for node in nodes
        ]
    assert trace(tmp_path / "remote") == trace(tmp_path / "local")
    assert json.loads(trace(tmp_path / "local").splitlines()[-1])["tokens"] == SAMPLES * SEQ_LEN
    asked = list(fetched(tmp_path / "requests.txt").values())
    assert len(asked) == 2
    first, second = (set(names) for names in asked)
    assert {name.removesuffix(".zstd") for name in first | second} == set(shards)
    assert len(first & second) <= 2  # where the lanes meet within a shard
    assert max(sum(map(int, sizes)) for sizes in kept) <= limit * 2**30
