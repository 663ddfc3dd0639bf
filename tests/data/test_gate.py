import json
from dataclasses import replace

import numpy as np
import pytest

from tests.data.preparing import write
from tinyllama.data import gate
from tinyllama.data.gate import by_kitoken, different, objection
from tinyllama.data.listing import find_files
from tinyllama.data.tokenizer import BOS, EOS, Tokenizer


@pytest.fixture
def asked(tmp_path, corpus, tokenizer):
    """asked() is what speaks against kitoken for the test's corpus."""

    def ask(**settings):
        chosen = corpus(**settings)
        return objection(Tokenizer.load(tokenizer), chosen, find_files(chosen), tmp_path / "scratch")

    return ask


@pytest.fixture
def errs_on(monkeypatch):
    """errs_on("river") gives texts in which that stands one token more."""
    encoder = gate._encoder

    def err(word):
        def build(model):
            encode = encoder(model)
            return lambda texts: [
                np.append(ids, 5) if word in text else ids for text, ids in zip(texts, encode(texts), strict=True)
            ]

        monkeypatch.setattr(gate, "_encoder", build)

    return err


def test_kitoken_gives_the_same_ids_and_adds_what_the_config_adds(tokenizer, sentences):
    exact = Tokenizer.load(replace(tokenizer, add_bos=True))
    fast = by_kitoken(exact)
    texts = [*sentences(50), *gate.TRIALS, "\n".join(sentences(500))]
    for ours, theirs in zip(fast.encode_documents(texts), exact.encode_documents(texts), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.tolist() == theirs.tolist()
        assert (ours[0], ours[-1]) == (BOS, EOS)


def test_nothing_speaks_against_kitoken_on_an_ordinary_corpus(tmp_path, asked, sentences):
    write(tmp_path, sentences(200))
    assert asked() is None


@pytest.mark.parametrize("row", [1, 9, 100, 200])
def test_a_document_that_is_encoded_differently_is_found_at_either_end_of_a_file_and_named(
    tmp_path, asked, errs_on, sentences, row
):
    texts = sentences(200)
    texts[row - 1] = "an unlucky word"
    if row == 100:  # of the middle a sample is tried
        texts[60:140] = [f"{text} unlucky" for text in texts[60:140]]
    for name in "abcdefghi":
        write(tmp_path, sentences(30) if name != "i" else texts, f"{name}.jsonl")
    errs_on("unlucky")
    found = asked()
    assert found is not None
    assert "i.jsonl:" in found
    if row != 100:
        assert found == f"it encodes {tmp_path}/raw/i.jsonl:{row} differently"


@pytest.mark.parametrize("text", ["\0", "</s>", "🙂", "今", "   ", "\n\n", "aaaaaaaa", "▁", "0123456789"])
def test_trial_texts_hold_what_tokenizers_disagree_on(tmp_path, asked, errs_on, sentences, text):
    write(tmp_path, sentences(20))
    errs_on(text)
    assert asked().startswith("it encodes '")


def test_the_pieces_of_the_model_are_tried(tmp_path, asked, errs_on, tokenizer, sentences):
    write(tmp_path, sentences(20))
    model = Tokenizer.load(tokenizer)
    piece = max((model.piece(token).replace("▁", " ") for token in range(259, model.vocab_size)), key=len)
    assert not any(piece in text for text in gate.TRIALS)
    errs_on(piece)
    assert asked().startswith("it encodes '")


def test_without_kitoken_the_remedy_is_told(tmp_path, asked, sentences, without_kitoken):
    write(tmp_path, sentences(20))
    assert asked() == "kitoken is not installed (pip install kitoken)"


def test_a_model_that_kitoken_encodes_otherwise_is_not_trusted(tokenizer, sentences, tmp_path):
    write(tmp_path, [json.dumps(sentences(3))])
    exact = Tokenizer.load(tokenizer)
    assert not different(exact, by_kitoken(exact), "river")
    assert different(exact, Tokenizer(exact.config, exact.model, lambda texts: [np.array([7])] * len(texts)), "river")


def test_of_a_file_the_first_the_last_and_some_others_are_tried_whatever_its_length():
    numbers = list(gate._spread(iter(range(10_000))))
    assert numbers[:16] == list(range(16))
    assert numbers[-16:] == list(range(9_984, 10_000))
    assert len(numbers) == 64
    assert len({number // 1_000 for number in numbers[16:-16]}) > 5
    assert numbers == list(gate._spread(iter(range(10_000))))
