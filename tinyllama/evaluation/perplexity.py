"""The loss on held-out samples of a corpus, per token and in bits per byte of text, by which tokenizers compare."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from tinyllama.data.tokenizer import Tokenizer
from tinyllama.evaluation.held_out import HeldOut, documents, windows

_SPACE = "▁"


@dataclass(frozen=True)
class Loss:
    """Of predicting a text."""

    nats: float
    """In all, the ends of documents among it."""
    tokens: int
    bytes: int
    """Of the predicted text in UTF-8; the end of a document has none."""

    @property
    def document(self) -> dict[str, float | int]:
        """As format=json prints it and the run's evaluations keep it."""
        loss = self.nats / self.tokens
        return {
            "loss": loss,
            "perplexity": math.exp(loss),
            "bits_per_byte": self.nats / math.log(2) / self.bytes,
            "tokens": self.tokens,
            "bytes": self.bytes,
        }


class Spelling:
    """How many bytes of text each token of a tokenizer stands for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        pieces = [tokenizer.piece(token) for token in range(tokenizer.vocab_size)]
        self._eos = tokenizer.eos
        self._widths = np.array([_width(tokenizer, token, piece) for token, piece in enumerate(pieces)])
        # The space that a model of this kind puts before a text is none of the text's.
        marks = tokenizer.piece(tokenizer.encode("a")[0]).startswith(_SPACE)
        self._marked = np.array([marks and piece.startswith(_SPACE) for piece in pieces])

    def bytes(self, rows: NDArray[np.integer]) -> int:
        """Of what is predicted in windows [n, length + 1]: all but their first tokens."""
        context, predicted = rows[:, :-1], rows[:, 1:]
        begins = (context == self._eos) & self._marked[predicted]
        return int(self._widths[predicted].sum() - begins.sum())


def own_loss(model: Any, corpus: HeldOut, tokenizer: Tokenizer, samples: int, seq_len: int, batch: int) -> Loss:
    """Of a model of ours, on the very windows on which training validates: the first `samples` of seq_len tokens."""
    spelling = Spelling(tokenizer)
    nats, tokens, width = 0.0, 0, 0
    for rows in windows(corpus.folder, samples, seq_len, batch):
        found = _nats(model, rows)
        nats, tokens, width = nats + found, tokens + rows[:, 1:].size, width + spelling.bytes(rows)
    return Loss(nats, tokens, width)


def foreign_loss(
    model: Any, theirs: Any, corpus: HeldOut, tokenizer: Tokenizer, samples: int, seq_len: int, batch: int
) -> Loss:
    """Of a model with a tokenizer of its own, on the text of the same samples.

    Its documents end with its own EOS, and stand one behind the other in windows of `seq_len` tokens, or as many as it
    can read.

    Args:
        theirs: the model's tokenizer, of transformers.
        tokenizer: the one with which the corpus was prepared.
    """
    texts = documents(corpus, tokenizer, samples)
    stream = [theirs.eos_token_id]
    for text in texts:
        stream += [*theirs.encode(text, add_special_tokens=False), theirs.eos_token_id]
    length = min(seq_len, getattr(model.config, "max_position_embeddings", seq_len))
    nats = sum(_nats(model, rows) for rows in _cut(stream, length, batch))
    return Loss(nats, len(stream) - 1, sum(len(text.encode()) for text in texts))


@torch.no_grad()
def _nats(model: Any, rows: NDArray[np.integer]) -> float:
    """Summed cross-entropy of windows [n, length + 1]."""
    tokens = torch.from_numpy(rows.astype(np.int64)).to(model.device)
    logits, targets = model(tokens[:, :-1], use_cache=False).logits, tokens[:, 1:]
    losses = functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return float(losses.double().sum())


def _cut(stream: Sequence[int], length: int, batch: int) -> Iterator[NDArray[np.int64]]:
    """The stream in windows of length + 1 at stride length, so many at a time; the last is as long as it is."""
    whole = (len(stream) - 1) // length
    ids = np.array(stream, np.int64)
    rows = np.stack([ids[at * length : (at + 1) * length + 1] for at in range(whole)]) if whole else ids[:0, None]
    yield from (rows[begin : begin + batch] for begin in range(0, whole, batch))
    if len(ids) > whole * length + 1:
        yield ids[None, whole * length :]


def _width(tokenizer: Tokenizer, token: int, piece: str) -> int:
    if tokenizer.is_byte(token):
        return 1
    if tokenizer.is_special(token) or tokenizer.is_unknown(token):
        return 0
    return len(piece.replace(_SPACE, " ").encode())
