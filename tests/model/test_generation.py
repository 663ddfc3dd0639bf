"""Continued texts against the decoder without a cache, and against a model that says what it was told to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyllama.config.schema import GenerationConfig, ModelConfig, TokenizerConfig
from tinyllama.data.tokenizer import BOS, EOS, Tokenizer, train_tokenizer
from tinyllama.errors import ConfigError
from tinyllama.model.generation import Continuation, TextStream, continue_text
from tinyllama.model.llama import Llama, build_model
from tinyllama.model.transformers import hf_model, hf_tokenizer

VOCAB, SEQ = 320, 48
SIZES = ModelConfig(
    name="test", vocab_size=VOCAB, hidden_size=VOCAB, intermediate_size=64, num_layers=2, num_heads=5, num_kv_heads=1,
    seq_len=SEQ,
)  # fmt: skip
TEXTS = ["the river runs under the house\n", "山 水 river 山水 house", "def house(river): return 山"] * 20
GREEDY = GenerationConfig(temperature=0, max_tokens=30)


@pytest.fixture(scope="session")
def spelling(tmp_path_factory: pytest.TempPathFactory) -> TokenizerConfig:
    path = tmp_path_factory.mktemp("tokenizer") / "test.model"
    train_tokenizer(TEXTS, path, VOCAB)
    return TokenizerConfig(name="test", path=str(path), vocab_size=VOCAB)


@pytest.fixture(scope="session")
def ours(spelling: TokenizerConfig) -> Tokenizer:
    return Tokenizer.load(spelling)


@pytest.fixture(scope="session")
def tokenizer(spelling: TokenizerConfig) -> Any:
    return hf_tokenizer(Path(spelling.path), spelling, SEQ)


@pytest.fixture(scope="session")
def llama() -> Llama:
    """Random weights, larger than usual, so that what it says varies."""
    llama = build_model(SIZES, "sdpa", torch.device("cpu"))
    llama.initialize(seed=3)
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter.mul_(3)
    return llama


@pytest.fixture
def model(llama: Llama) -> Any:
    return hf_model(dict(llama.state_dict()), SIZES, torch.float32)


@pytest.fixture
def parrot(llama: Llama) -> Callable[[dict[int, int]], Any]:
    """parrot({a: b}) says b after a: one-hot embeddings that no block changes, and a head that is the table."""

    def build(follows: dict[int, int]) -> Any:
        state = {name: torch.zeros_like(value) for name, value in llama.state_dict().items()}
        state["embedding.weight"] = torch.eye(VOCAB)
        state["norm.weight"] = torch.ones(VOCAB)
        for token, following in follows.items():
            state["head.weight"][following, token] = 1
        return hf_model(state, SIZES, torch.float32)

    return build


def said(model: Any, tokenizer: Any, prompt: str, how: GenerationConfig = GREEDY) -> tuple[Continuation, list[str]]:
    """The continuation, and the pieces in which it came."""
    pieces: list[str] = []
    return continue_text(model, tokenizer, prompt, how, pieces.append), pieces


@pytest.mark.parametrize("prompt", ["the river", "山水", "def house(", "🦙"])
def test_greedy_text_is_what_our_decoder_says_without_a_cache(
    llama: Llama, model: Any, tokenizer: Any, ours: Tokenizer, prompt: str
) -> None:
    start = ours.encode(prompt)
    ids = list(start)
    with torch.no_grad():
        while len(ids) < min(len(start) + GREEDY.max_tokens, SEQ) and EOS not in ids:
            ids.append(int(llama.logits(torch.tensor([ids]))[0, -1].argmax()))
    answer, pieces = said(model, tokenizer, prompt)
    new = ids[len(start) :]
    assert len(set(new)) > 5, "it says the same again and again, so that nothing would be seen"
    assert answer.tokens == len([token for token in new if token != EOS])
    assert prompt + answer.text == tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(pieces) == answer.text


@given(data=st.data())
def test_pieces_put_together_are_what_the_tokenizer_makes_of_all_tokens_at_once(
    tokenizer: Any, data: st.DataObject
) -> None:
    """Bytes that are no text, halves of characters and specials among them."""
    token = st.one_of(st.integers(0, VOCAB - 1), st.sampled_from([*"\n山"]).flatmap(
        lambda text: st.sampled_from(tokenizer(text)["input_ids"])))  # fmt: skip
    prompt = list(tokenizer(data.draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=8)))["input_ids"])
    new, pieces = data.draw(st.lists(token, max_size=20)), []
    stream = TextStream(tokenizer, prompt, pieces.append)
    stream.put(torch.tensor([prompt]))
    for each in new:
        stream.put(torch.tensor([each]))
    stream.end()
    before, whole = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, prompt + new))
    left = whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new, skip_special_tokens=True)
    assert "".join(pieces) == stream.text == left
    assert all(pieces)


def test_characters_come_whole_and_as_soon_as_they_are(tokenizer: Any) -> None:
    text = "the 山 is 🦙🦙 high\n水"
    ids, pieces, seen = tokenizer(text)["input_ids"], [], []
    stream = TextStream(tokenizer, ids[:1], pieces.append)
    stream.put(torch.tensor([ids[:1]]))
    for token in ids[1:]:
        stream.put(torch.tensor([token]))
        seen.append(("".join(pieces), token))
    stream.end()
    first = tokenizer.decode(ids[:1])
    assert first + "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    for number, (shown, token) in enumerate(seen, start=2):
        if not tokenizer.convert_ids_to_tokens(token).startswith("<0x") and tokenizer.decode([token]):
            assert first + shown == tokenizer.decode(ids[:number])


def test_the_text_is_shown_while_it_is_made(model: Any, tokenizer: Any) -> None:
    """Who reads no further ends it."""
    steps: list[object] = []
    model.register_forward_hook(lambda *_: steps.append(None))

    def leave(text: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        continue_text(model, tokenizer, "the river", GREEDY, leave)
    assert 0 < len(steps) < GREEDY.max_tokens / 2


def test_each_step_reads_one_token_and_keeps_what_was_read(model: Any, tokenizer: Any) -> None:
    widths: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda _, inputs, output: widths.append(output.shape[1]))
    answer, _ = said(model, tokenizer, "the river runs")
    prompt = len(tokenizer("the river runs")["input_ids"])
    assert prompt > 1 and answer.tokens > 2
    assert widths == [prompt, *[1] * (len(widths) - 1)]


def test_the_end_of_a_document_ends_the_text_and_is_not_shown(
    parrot: Callable[[dict[int, int]], Any], tokenizer: Any, ours: Tokenizer
) -> None:
    first, second = (ours.encode(text)[-1] for text in ("house", "river"))
    answer, pieces = said(parrot({first: second, second: EOS}), tokenizer, "house")
    assert answer == Continuation(
        text=ours.decode([first, second])[len(ours.decode([first])) :], tokens=1, finish="eos"
    )
    assert pieces == [answer.text]


def test_an_empty_prompt_begins_a_document_as_training_did(
    parrot: Callable[[dict[int, int]], Any], tokenizer: Any, spelling: TokenizerConfig, ours: Tokenizer
) -> None:
    house, river = (ours.encode(text)[0] for text in ("house", "river"))
    model = parrot({EOS: house, BOS: river, house: EOS, river: EOS})
    assert said(model, tokenizer, "")[0].text.strip() == ours.decode([house])
    spelling = TokenizerConfig(name="test", path=spelling.path, vocab_size=VOCAB, add_bos=True)
    with_bos = hf_tokenizer(Path(spelling.path), spelling, SEQ)
    assert said(parrot({EOS: house, BOS: river, house: EOS, river: EOS}), with_bos, "")[0].text.strip() == ours.decode(
        [river]
    )


def test_prompt_and_text_fill_the_context_and_no_more(
    parrot: Callable[[dict[int, int]], Any], tokenizer: Any, ours: Tokenizer
) -> None:
    (*_, last) = ids = ours.encode("the river")
    model = parrot({last: last})
    assert said(model, tokenizer, "the river", GenerationConfig(temperature=0, max_tokens=5))[0][1:] == (
        5,
        "max_tokens",
    )
    assert said(model, tokenizer, "the river", GenerationConfig(temperature=0, max_tokens=99))[0][1:] == (
        SEQ - len(ids), "seq_len",
    )  # fmt: skip


def test_a_prompt_that_leaves_no_room_is_refused(model: Any, tokenizer: Any) -> None:
    text = "river " * SEQ
    with pytest.raises(
        ConfigError, match=rf"prompt is {len(tokenizer(text)['input_ids'])} tokens long .* {SEQ} tokens"
    ):
        said(model, tokenizer, text)


def test_the_seed_decides_what_is_drawn(model: Any, tokenizer: Any) -> None:
    texts = [said(model, tokenizer, "the river", GenerationConfig(temperature=1, seed=seed))[0] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("limit", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_the_narrowest_choice_is_the_likeliest_token(model: Any, tokenizer: Any, limit: dict[str, Any]) -> None:
    narrow = GenerationConfig(**{"temperature": 1.0, "max_tokens": 30, **limit})
    assert said(model, tokenizer, "the river", narrow)[0] == said(model, tokenizer, "the river")[0]


def test_without_limits_every_token_may_come(parrot: Callable[[dict[int, int]], Any], tokenizer: Any) -> None:
    """transformers would choose among 50 unless it is told otherwise."""
    model, drawn = parrot({}), set()  # after anything, all are as likely
    model.model.embed_tokens.register_forward_pre_hook(lambda _, inputs: drawn.update(inputs[0].flatten().tolist()))
    for seed in range(4):
        said(model, tokenizer, "the", GenerationConfig(temperature=1, max_tokens=40, seed=seed))
    assert len(drawn) > 70


def test_what_a_folder_says_of_sampling_is_not_asked(model: Any, tokenizer: Any) -> None:
    plain, _ = said(model, tokenizer, "the river")
    model.generation_config.update(
        repetition_penalty=50.0, do_sample=True, temperature=9.0, min_new_tokens=40, num_beams=4
    )
    assert said(model, tokenizer, "the river")[0] == plain
