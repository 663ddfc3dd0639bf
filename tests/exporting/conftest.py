"""A run of random weights with a real tokenizer, ready to be exported."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from tests.laid import lay_run
from tinyllama.checkpoint.choice import Chosen, choose_of
from tinyllama.config.schema import RunConfig
from tinyllama.data.tokenizer import train_tokenizer
from tinyllama.planning.corpora import Corpus, Inventory

TEXTS = ["the river of light found the small house", "学生 山水 中国 人大", "def f(x): return x ** 2 + 17"] * 5
TINY = [
    "+scale=demo", "+variant=chinese", "model.vocab_size=384", "tokenizer.vocab_size=320", "model.hidden_size=32",
    "model.num_layers=3", "model.num_heads=4", "model.num_kv_heads=2", "model.intermediate_size=48", "model.seq_len=64",
]  # fmt: skip
"""With more rows of the vocabulary than the tokenizer has pieces."""


@pytest.fixture(scope="session")
def tokenizer_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tiny.model"
    train_tokenizer(TEXTS, path, 320)
    return path


@pytest.fixture
def lay(
    compose: Callable[..., tuple[RunConfig, ...]], tokenizer_model: Path, tmp_path: Path
) -> Callable[..., list[Chosen]]:
    """lay("stage=continual") -> the runs of the path, the root first, each as it ended."""

    def lay_path(*overrides: str) -> list[Chosen]:
        settings = [*TINY, f"paths.runs={tmp_path / 'runs'}", f"tokenizer.path={tokenizer_model}", *overrides]
        path = compose(*settings)
        digest = sha256(tokenizer_model.read_bytes()).hexdigest()
        corpora = {name: Corpus(name, sha256(name.encode()).hexdigest(), (500, 500)) for name in path[-1].corpora}
        inventory = Inventory(corpora, digest)
        folders = [lay_run(path[: place + 1], inventory) for place in range(len(path))]
        return [choose_of(folder, config) for folder, config in zip(folders, path, strict=True)]

    return lay_path


@pytest.fixture
def chosen(lay: Callable[..., list[Chosen]]) -> Chosen:
    return lay("stage=basic")[-1]
