import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tinyllama.config.schema import TokenizerConfig
from tinyllama.data.tokenizer import Tokenizer, train_tokenizer
from tinyllama.evaluation import perplexity
from tinyllama.evaluation.perplexity import Loss, Spelling, foreign_loss, own_loss

TEXTS = ["The river, the house.", " begins with a space", "山水\n\n\t🜚 naïve", "x", "two  spaces and a tail "]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "a.model"
    train_tokenizer(["the river and the house by the river 山水"] * 20, path, 300)
    return Tokenizer.load(TokenizerConfig(name="a", path=str(path), vocab_size=300))


class Uniform:
    """A model to which all tokens are equally likely."""

    device = torch.device("cpu")
    config = SimpleNamespace(max_position_embeddings=8)

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.seen = 0

    def __call__(self, tokens: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        self.seen += tokens.numel()
        return SimpleNamespace(logits=torch.zeros(*tokens.shape, self.vocab_size))


def test_the_bytes_of_tokens_are_those_of_the_texts_that_they_spell(tokenizer: Tokenizer):
    stream = [tokenizer.eos, *(token for text in TEXTS for token in [*tokenizer.encode(text), tokenizer.eos])]
    assert Spelling(tokenizer).bytes(np.array([stream])) == sum(len(text.encode()) for text in TEXTS)


def test_bits_per_byte_are_the_bits_of_all_tokens_over_the_bytes_of_the_text():
    document = Loss(nats=12 * math.log(2), tokens=3, bytes=8).document
    assert document["bits_per_byte"] == pytest.approx(1.5)
    assert document["perplexity"] == pytest.approx(16)


def test_a_model_that_knows_nothing_needs_the_same_bits_for_each_token_of_the_windows(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    rows = np.array([[tokenizer.eos, *tokenizer.encode("the river")]])
    monkeypatch.setattr(perplexity, "windows", lambda *arguments: iter([rows, rows]))
    found = own_loss(Uniform(512), SimpleNamespace(folder=Path()), tokenizer, 9, 8, 4)
    assert found.tokens == 2 * (rows.size - 1) and found.bytes == 2 * len("the river")
    assert found.document["bits_per_byte"] == pytest.approx(9 * found.tokens / found.bytes)


def test_a_foreign_model_predicts_each_token_of_its_own_once_in_windows_that_it_can_read(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    class Characters:
        eos_token_id = 0

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [1] * len(text)

    monkeypatch.setattr(perplexity, "documents", lambda *arguments: TEXTS)
    model = Uniform(4)
    found = foreign_loss(model, Characters(), SimpleNamespace(), tokenizer, 9, 32, 4)
    assert found.tokens == model.seen == sum(len(text) + 1 for text in TEXTS)
    assert found.bytes == sum(len(text.encode()) for text in TEXTS)
    assert found.nats == pytest.approx(found.tokens * math.log(4))
