from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllama.data.tokenizer import BOS, EOS, Tokenizer, train_tokenizer
from tinyllama.errors import ConfigError


def test_special_ids_are_those_of_llama_2(tokenizer):
    model = Tokenizer.load(tokenizer)
    assert (model.vocab_size, model.bos, model.eos) == (320, BOS, EOS) == (320, 1, 2)


def test_the_digest_is_that_of_the_file(tokenizer):
    assert Tokenizer.load(tokenizer).digest == sha256(Path(tokenizer.path).read_bytes()).hexdigest()


def test_the_same_texts_train_the_same_model(tokenizer, sentences, tmp_path):
    train_tokenizer(sentences(300, seed=1), tmp_path / "again.model", vocab_size=320)
    assert (tmp_path / "again.model").read_bytes() == Path(tokenizer.path).read_bytes()


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
def test_any_text_survives_encoding_thanks_to_byte_fallback(tokenizer, text):
    model = Tokenizer.load(tokenizer)
    assert model.decode(model.encode(text)) == text


def test_special_tokens_written_in_a_text_stay_text(tokenizer):
    ids = Tokenizer.load(tokenizer).encode("<s> a </s> <unk>")
    assert not {0, BOS, EOS} & set(ids)


def test_digits_are_split_and_new_lines_are_bytes(tokenizer):
    model = Tokenizer.load(tokenizer)
    assert [model.decode([token]) for token in model.encode("2024")[-4:]] == list("2024")
    assert len(model.encode("a\nb")) == len(model.encode("a")) + 2


def test_documents_end_with_eos_and_begin_with_bos_where_the_config_says_so(tokenizer):
    text = "river light"
    plain = Tokenizer.load(tokenizer).encode(text)
    assert Tokenizer.load(tokenizer).encode_documents([text, "sand"])[0] == [*plain, EOS]
    assert Tokenizer.load(replace(tokenizer, add_bos=True)).encode_documents([text]) == [[BOS, *plain, EOS]]
    assert Tokenizer.load(replace(tokenizer, add_eos=False)).encode_documents([text]) == [plain]


def test_a_missing_model_names_the_command_that_makes_it(tokenizer):
    with pytest.raises(ConfigError, match=r"tokenizer.path=/none/x.model does not exist.*python -m tinyllama.sample"):
        Tokenizer.load(replace(tokenizer, path="/none/x.model"))


def test_a_vocabulary_other_than_the_configs_is_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"tokenizer.vocab_size=32000 differs from the 320 pieces"):
        Tokenizer.load(replace(tokenizer, vocab_size=32000))


def test_a_file_that_is_no_model_is_refused(tokenizer, tmp_path):
    (tmp_path / "bad.model").write_bytes(b"version https://example")
    with pytest.raises(ConfigError, match="bad.model is no sentencepiece model"):
        Tokenizer.load(replace(tokenizer, path=str(tmp_path / "bad.model")))
