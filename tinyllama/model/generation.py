"""A model continues a text, token by token, with its keys and values kept. The models are those of transformers.py."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinyllama.config.schema import GenerationConfig
from tinyllama.errors import ConfigError


class Continuation(NamedTuple):
    text: str
    """What follows the prompt."""
    tokens: int
    """New ones, the end of the document not counted."""
    finish: str
    """Why it ends there: "eos", "max_tokens", or "seq_len" where prompt and text fill the model's context."""


def continue_text(
    model: Any, tokenizer: Any, prompt: str, settings: GenerationConfig, show: Callable[[str], None]
) -> Continuation:
    """Continue `prompt`; what was chosen depends on model, prompt and settings alone.

    Args:
        show: gets the text as it comes, in pieces that are never taken back.

    Raises:
        ConfigError: the prompt leaves no room in the model's context.
    """
    ids, seq_len = _prompt_ids(tokenizer, prompt), model.config.max_position_embeddings
    if len(ids) >= seq_len:
        raise ConfigError(
            f"prompt is {len(ids)} tokens long and leaves no room in the {seq_len} tokens that the model reads; "
            f"give its end alone"
        )
    most = min(settings.max_tokens, seq_len - len(ids))
    stream = TextStream(tokenizer, ids, show)
    ends = _ends(model, tokenizer)
    # What a folder says of sampling, its penalties and its lengths is not what was asked for.
    model.generation_config = type(model.generation_config)()
    torch.manual_seed(settings.seed)
    inputs = torch.tensor([ids], device=model.device)
    model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=most,
        eos_token_id=sorted(ends) or None,
        pad_token_id=tokenizer.eos_token_id,
        streamer=stream,
        **_choice(settings),
    )
    ended = bool(stream.ids) and stream.ids[-1] in ends
    finish = "eos" if ended else "max_tokens" if most == settings.max_tokens else "seq_len"
    return Continuation(stream.text, len(stream.ids) - ended, finish)


def _prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """As documents begin in training; nothing at all begins one, which in training follows the end of another."""
    ids = list(tokenizer(prompt)["input_ids"])
    return ids or [tokenizer.eos_token_id]


def _ends(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that end a document."""
    said = model.generation_config.eos_token_id
    listed = said if isinstance(said, list) else [said]
    return {token for token in (*listed, tokenizer.eos_token_id) if token is not None}


def _choice(settings: GenerationConfig) -> dict[str, Any]:
    """How a token is chosen, in words of transformers."""
    if settings.temperature == 0:
        return {"do_sample": False}
    top_p = 1.0 if settings.top_p is None else settings.top_p
    return {"do_sample": True, "temperature": settings.temperature, "top_k": settings.top_k or 0, "top_p": top_p}


class TextStream:
    """Takes tokens from generate(), the prompt's first, and shows the text that no later token can change.

    That is all up to a token that spells bytes, or a part of a character, or nothing: those that follow may belong to
    what is before it. Put together it is what the tokenizer makes of all tokens at once.
    """

    def __init__(self, tokenizer: Any, prompt: list[int], show: Callable[[str], None]) -> None:
        self.ids: list[int] = []
        """New ones."""
        self.text = ""
        """Shown so far."""
        self._tokenizer, self._prompt, self._show = tokenizer, prompt, show
        self._before = self._decode(prompt)
        self._begun = False

    def put(self, ids: Tensor) -> None:
        if not self._begun:  # the prompt
            self._begun = True
            return
        self.ids += ids.tolist()
        if not self._may_go_on(self.ids[-1]):
            self.end()

    def end(self) -> None:
        """Show all of it."""
        whole = self._decode(self._prompt + self.ids)
        # Bytes that are no text take those before them along, into the prompt too; then it is left out.
        text = whole[len(self._before) :] if whole.startswith(self._before) else self._decode(self.ids)
        if new := text[len(self.text) :]:
            self.text = text
            self._show(new)

    def _may_go_on(self, token: int) -> bool:
        text = self._decode([token])
        is_byte = self._tokenizer.convert_ids_to_tokens(token).startswith("<0x")
        return is_byte or not text or text.endswith("\N{REPLACEMENT CHARACTER}")

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
