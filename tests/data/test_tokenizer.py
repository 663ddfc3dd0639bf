from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.conftest import WORDS
from tinyllama.config.schema import TokenizerConfig
from tinyllama.data import seams
from tinyllama.data import tokenizer as tokenizer_module
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


def encoded(config, *texts):
    return [ids.tolist() for ids in Tokenizer.load(config).encode_documents(texts)]


def test_documents_end_with_eos_and_begin_with_bos_where_the_config_says_so(tokenizer):
    text = "river light"
    plain = Tokenizer.load(tokenizer).encode(text)
    assert encoded(tokenizer, text, "sand")[0] == [*plain, EOS]
    assert encoded(replace(tokenizer, add_bos=True), text) == [[BOS, *plain, EOS]]
    assert encoded(replace(tokenizer, add_eos=False), text) == [plain]


FRAGMENTS = [*WORDS, "sandriver", " ", "  ", "\n", "\n\n", "\t", "▁", "\0", "7", "</s>", "<s>", "é", "🙂", "，"]
texts = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=60).map("".join)


@pytest.fixture
def short_stretches(monkeypatch):
    """Texts are cut as soon as they have more than five characters."""
    for module in (seams, tokenizer_module):
        monkeypatch.setattr(module, "STRETCH", 5)
    monkeypatch.setattr(tokenizer_module, "AT_A_TIME", 3)


@given(documents=st.lists(texts, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_encoded_in_stretches_is_encoded_as_a_whole(tokenizer, short_stretches, documents):
    whole = [[*Tokenizer.load(tokenizer).encode(text), EOS] for text in documents]
    assert encoded(tokenizer, *documents) == whole


def test_long_documents_are_cut_at_all(tokenizer, monkeypatch):
    model, taken = Tokenizer.load(tokenizer), []
    monkeypatch.setattr(model, "_encode", lambda texts: taken.extend(texts) or model._encode_by_sentencepiece(texts))
    text = "river light " * 5_000
    assert model.encode_documents([text])[0].tolist() == [*model.encode(text), EOS]
    assert len(taken) > 10
    assert max(map(len, taken)) < 5_000


@pytest.fixture(scope="module", params=["unigram", "nfkc", "no byte fallback", "trimmed"])
def other_model(request, tmp_path_factory, sentences) -> TokenizerConfig:
    """A model whose pieces alone do not decide where a text can be cut."""
    path = tmp_path_factory.mktemp("other") / "other.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences(300, seed=1)),
        model_prefix=str(path.with_suffix("")),
        model_type="unigram" if request.param == "unigram" else "bpe",
        byte_fallback=request.param != "no byte fallback",
        normalization_rule_name="nmt_nfkc" if request.param == "nfkc" else "identity",
        remove_extra_whitespaces=request.param == "trimmed",
        vocab_size=320,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    size = sentencepiece.SentencePieceProcessor(model_file=str(path)).vocab_size()
    return TokenizerConfig(name="other", path=str(path), vocab_size=size)


@given(document=texts)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_models_that_their_pieces_do_not_explain_encode_documents_whole(other_model, short_stretches, document):
    assert encoded(other_model, document) == [[*Tokenizer.load(other_model).encode(document), EOS]]


def test_documents_that_can_be_cut_have_any_length_and_others_a_limit(tokenizer, short_stretches, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "LONGEST_STRETCH", 6)
    model = Tokenizer.load(tokenizer)
    assert model.can_encode("river")
    assert model.can_encode("7" * 1_000)  # no piece holds two digits
    assert model.can_encode("1 2\n" * 1_000)
    joined = max((piece for token in range(model.vocab_size) if "<" not in (piece := model.piece(token))), key=len)
    assert len(joined) > 6
    assert not model.can_encode(f"river {joined}")


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
