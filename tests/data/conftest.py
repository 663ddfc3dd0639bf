"""Small packed corpora, and ranks forked from this process."""

import sys
import traceback
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from tests.data import preparing
from tinyllama.config.schema import CorpusConfig, PreparationConfig, TokenizerConfig
from tinyllama.data import gate, recipe
from tinyllama.data.manifest import corpus_folder
from tinyllama.data.mds import MDSWriter
from tinyllama.data.prepare import prepare_corpus
from tinyllama.data.reporter import silent
from tinyllama.data.tokenizer import train_tokenizer
from tinyllama.world import World

SEQ_LEN = 8
SAMPLES = {"slim": 600, "star": 150, "sky": 70}


def write_corpus(folder: Path, first_token: int, samples: int, dtype: str = "uint16", **settings) -> None:
    """Sample k begins with the tokens (first_token, k)."""
    with MDSWriter(
        out=str(folder), columns={"tokens": f"ndarray:{dtype}"}, size_limit=1 << 10, hashes=["sha256"], **settings
    ) as writer:
        for sample in range(samples):
            tokens = np.arange(SEQ_LEN + 1) + 7
            tokens[:2] = first_token, sample
            writer.write({"tokens": tokens.astype(dtype)})


@pytest.fixture(scope="session")
def packed(tmp_path_factory) -> dict[str, Path]:
    """Corpora packed in shards of about 35 samples, raw, by name."""
    root = tmp_path_factory.mktemp("packed")
    for first_token, (name, samples) in enumerate(SAMPLES.items()):
        write_corpus(root / name, first_token, samples)
    return {name: root / name for name in SAMPLES}


@pytest.fixture(scope="session")
def compressed(tmp_path_factory) -> dict[str, Path]:
    """The same as zstd, as a remote would hold them."""
    root = tmp_path_factory.mktemp("compressed")
    for first_token, (name, samples) in enumerate(SAMPLES.items()):
        write_corpus(root / name, first_token, samples, compression="zstd:3")
    return {name: root / name for name in SAMPLES}


@pytest.fixture
def on_ranks(tmp_path):
    """on_ranks(size, work) runs work(world) in `size` forked ranks of one gloo group and returns their results."""
    return lambda size, work: _on_ranks(size, work, tmp_path / f"rendezvous-{size}")


def _on_ranks(size, work, rendezvous):
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def run(rank: int) -> None:
        try:
            dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
            results.put((rank, work(World(rank=rank, size=size, local_rank=rank, local_size=size))))
            dist.barrier()
            dist.destroy_process_group()
        except BaseException:
            results.put((rank, traceback.format_exc()))
            raise

    ranks = [context.Process(target=run, args=(rank,)) for rank in range(size)]
    for rank in ranks:
        rank.start()
    found = dict(results.get() for _ in ranks)
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0] * size, found
    return [found[rank] for rank in range(size)]


WORDS = ["sand", "river", "light", "stone", "cloud", "paper", "green", "apple", "window", "山", "水", "月", "风"]


@pytest.fixture(scope="session")
def sentences():
    """sentences(number, seed) are that many different short texts."""

    def write(number: int, seed: int = 0) -> list[str]:
        random = Random(seed)
        return [f"{index} " + " ".join(random.choices(WORDS, k=random.randint(5, 40))) for index in range(number)]

    return write


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory, sentences) -> TokenizerConfig:
    """A real tokenizer of 320 pieces."""
    path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    train_tokenizer(sentences(300, seed=1), path, vocab_size=320)
    return TokenizerConfig(name="small", path=str(path), vocab_size=320)


@pytest.fixture
def corpus(tmp_path):
    """corpus(keep=...) is a CorpusConfig whose files are the .jsonl files of the test's raw folder."""
    (tmp_path / "raw").mkdir(exist_ok=True)
    defaults = {
        "name": "tales",
        "files": [str(tmp_path / "raw" / "*.jsonl")],
        "tokens": 1000,
        "validation_fraction": 0.1,
    }
    return lambda **settings: CorpusConfig(**defaults | settings)


@pytest.fixture
def prepare(tmp_path, corpus, tokenizer):
    """prepare(validation_fraction=...) prepares the test's corpus below its folder, in this process."""

    def run(data=None, tokenizer=tokenizer, processes=1, progress=silent, **settings):
        preparation = PreparationConfig(processes=processes)
        return prepare_corpus(
            corpus(**settings), tokenizer, preparing.SEQ_LEN, data or tmp_path / "data", progress, preparation
        )

    return run


@pytest.fixture
def folder(tmp_path, tokenizer):
    """Where the latest version of the test's corpus stands."""
    return corpus_folder(tmp_path / "data", tokenizer, preparing.SEQ_LEN, "tales")


@pytest.fixture
def three_parts(tmp_path, sentences, monkeypatch):
    """Three raw files that are parts of their own, as all that are added."""
    monkeypatch.setattr(recipe, "SMALLEST_PART_BYTES", 1)
    for index in range(3):
        preparing.write(tmp_path, sentences(70, seed=index), f"{index}.jsonl")


@pytest.fixture
def without_kitoken(monkeypatch):
    """As where it is not installed."""
    gate._encoder.cache_clear()
    monkeypatch.setitem(sys.modules, "kitoken", None)
