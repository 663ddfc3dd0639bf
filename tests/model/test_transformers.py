"""Hugging Face's objects made of ours: the same logits, the same token ids."""

import io
from pathlib import Path

import pytest
import sentencepiece
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tinyllama.config.schema import ModelConfig, TokenizerConfig
from tinyllama.data.tokenizer import Tokenizer, train_tokenizer
from tinyllama.errors import ConfigError
from tinyllama.model.llama import Llama
from tinyllama.model.transformers import hf_model, hf_tokenizer, load_hf

TEXTS = ["the river of light found  the small house", "学生 山水 中国 人大", "def f(x):\n\treturn x ** 2 + 17"] * 5


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tiny.model"
    train_tokenizer(TEXTS, path, 340)
    return path


def configured(path: Path, **marks: bool) -> TokenizerConfig:
    return TokenizerConfig(name="tiny", path=str(path), vocab_size=340, **marks)


def test_the_model_has_our_logits_and_shares_our_weights(
    model: Llama, config: ModelConfig, tokens: torch.Tensor
) -> None:
    theirs = hf_model(model.state_dict(), config, torch.float32)
    torch.testing.assert_close(theirs(tokens).logits[:, :-1], model.logits(tokens[:, :-1]), atol=1e-5, rtol=1e-5)
    ours = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert {parameter.untyped_storage().data_ptr() for parameter in theirs.parameters()} == ours
    assert not theirs.training


def test_in_another_precision_every_weight_is_rounded(model: Llama, config: ModelConfig) -> None:
    theirs = hf_model(model.state_dict(), config, torch.bfloat16)
    assert torch.equal(theirs.lm_head.weight, model.head.weight.bfloat16())
    assert {parameter.dtype for parameter in theirs.parameters()} == {torch.bfloat16}


@pytest.fixture(scope="module")
def both(pieces: Path):
    return Tokenizer.load(configured(pieces)), hf_tokenizer(pieces, configured(pieces), 48)


@settings(suppress_health_check=[HealthCheck.too_slow])
@example(" a space first, two  inside, one last ")
@example("</s> is <s> text, and so is <0x0A> or ▁")
@example("\x00\n\r\t\u3000\ufeffe\u0301😀")
@given(st.text() | st.text(alphabet=" ▁\nthe rivof学山def<s>/0x"))
def test_any_text_has_our_ids(both, text: str) -> None:
    ours, theirs = both
    assert theirs(text).input_ids == ours.encode(text)


def test_bos_comes_first_where_training_put_it_there_and_eos_is_never_added(pieces: Path) -> None:
    ours = Tokenizer.load(configured(pieces))
    for add_bos in (False, True):
        theirs = hf_tokenizer(pieces, configured(pieces, add_bos=add_bos, add_eos=True), 48)
        assert theirs("the river").input_ids == [ours.bos] * add_bos + ours.encode("the river")


def test_a_vocabulary_in_another_order_is_refused(tmp_path: Path) -> None:
    made, path = io.BytesIO(), tmp_path / "other.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=made, model_type="bpe", vocab_size=340, byte_fallback=True,
        unk_id=2, bos_id=0, eos_id=1, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    path.write_bytes(made.getvalue())
    with pytest.raises(ConfigError, match=r"other.model: UNK, BOS and EOS are not its pieces 0, 1 and 2"):
        hf_tokenizer(path, configured(path), 48)


def test_what_is_no_folder_of_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder of a Hugging Face model: it has no config.json"):
        load_hf(tmp_path, torch.float32)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 8}')
    with pytest.raises(ConfigError, match="cannot be loaded as a Hugging Face model: .*no file named"):
        load_hf(tmp_path, torch.float32)
