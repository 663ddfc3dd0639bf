"""Whether an exported folder is the model that was trained: its logits against ours, its token ids against ours.

Neither model ever stands in memory in fp32: each part of it is turned into fp32 when its turn comes.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tinyllama.checkpoint.choice import Chosen
from tinyllama.checkpoint.corpora import read_corpora
from tinyllama.config.schema import ModelConfig
from tinyllama.data.loader import validation_loader
from tinyllama.data.manifest import VALIDATION
from tinyllama.data.tokenizer import Tokenizer
from tinyllama.errors import ConfigError, TinyllamaError
from tinyllama.exporting.weights import Weights
from tinyllama.model.layers import Block, rotary_tables
from tinyllama.model.llama import build_model
from tinyllama.model.transformers import load_hf
from tinyllama.world import World

TOLERANCE = 1e-5
"""Largest difference of logits in fp32, where the largest logit is 1 or less; in proportion where it is more."""
SEQUENCES, LENGTH = 4, 32
"""What is compared: as many sequences of as many tokens."""

DIFFICULT = (
    "", " ", "  two spaces before, one after ", "\n", "\n\n\tA line.\r\n", "No\u00a0break, ideographic\u3000space",
    "人工智能正在改变世界。", "東京 한국어 العربية עברית हिन्दी", "emoji 😀👩\u200d👩\u200d👧 and 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "e\u0301 is not \u00e9", "naïve café", "3.14159 1,000,000 2^10", "def f(x):\n    return x ** 2  # ok\n",
    "<s> </s> <unk> <0x0A>", "▁▁ marks ▁ of spaces", "\x00\x07\x7f\ufeff", "a" * 300,
)  # fmt: skip
"""Texts in which tokenizers differ: spaces, bytes, marks, scripts, what looks like a special token."""


def compare(
    folder: Path, weights: Weights, config: ModelConfig, dtype: torch.dtype, tokenizer: Tokenizer, ids: Tensor
) -> float:
    """The largest difference between the logits of the folder, as transformers loads it, and ours of rounded weights.

    Args:
        ids: int64 [batch, length].

    Raises:
        ConfigError: the tokenizer is of a kind that Hugging Face's does not follow.
        RuntimeError: the logits differ by more than the order of summation explains.
    """
    ours = _our_logits(weights, config, dtype, ids)
    model, their_tokenizer = load_hf(folder, dtype)
    _require_same_ids(tokenizer, their_tokenizer, [tokenizer.decode(row.tolist()) for row in ids])
    theirs = _their_logits(model, dtype, ids)
    difference, scale = float((ours - theirs).abs().max()), max(1.0, float(ours.abs().max()))
    if not difference <= TOLERANCE * scale:
        raise RuntimeError(
            f"the exported model is not the one that was trained: its logits differ by up to {difference:.2g}, "
            f"where they are up to {scale:.2g}"
        )
    return difference


def _require_same_ids(ours: Tokenizer, theirs: Any, texts: Sequence[str]) -> None:
    before = [ours.bos] * ours.config.add_bos
    for text in (*DIFFICULT, *texts):
        wanted, found = [*before, *ours.encode(text)], theirs(text).input_ids
        if found != wanted:
            raise ConfigError(
                f"tokenizer.path={ours.config.path}: Hugging Face's Llama tokenizer makes {found[:8]} of "
                f"{text[:40]!r}, and sentencepiece {wanted[:8]}; only byte-pair models with byte fallback that leave "
                f"texts as they are can be exported, such as Llama 2's"
            )


def held_out(chosen: Chosen) -> tuple[str, Tensor]:
    """What to compare logits on, in words and as int64 [batch, length]: the beginnings of held-out samples, one of
    each corpus; random ids where the data is not at hand.
    """
    length = min(LENGTH, chosen.config.model.seq_len)
    rows = [row[:length] for row in islice(_samples(chosen), SEQUENCES)]
    if rows:
        return f"{len(rows)} held-out sequences of {length} tokens", torch.stack(rows)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(chosen.config.tokenizer.vocab_size, (SEQUENCES, length), generator=generator)
    return f"{SEQUENCES} random sequences of {length} tokens", ids


def _samples(chosen: Chosen) -> Iterator[Tensor]:
    try:
        for corpus in read_corpora(chosen.folder.corpora).values():
            folder, seq_len = Path(corpus.folder) / VALIDATION, chosen.config.model.seq_len
            for batch in validation_loader(folder, samples=1, micro_batch=1, world=World(), seq_len=seq_len):
                yield batch.tokens[0].long()
    except TinyllamaError:  # what data there is today is no matter of the export
        return


@torch.no_grad()
def _our_logits(weights: Weights, config: ModelConfig, dtype: torch.dtype, ids: Tensor) -> Tensor:
    model = build_model(config, "sdpa", torch.device("meta"))
    cosines, sines = (table[: ids.shape[1]] for table in rotary_tables(config))
    blocks = {f"blocks.{index}": block for index, block in enumerate(model.blocks)}
    x = ids
    for prefix, part in {"embedding": model.embedding, **blocks, "norm": model.norm, "head": model.head}.items():
        state = {name: weights[f"{prefix}.{name}"].to(dtype).float() for name in part.state_dict()}
        part.load_state_dict(state, assign=True)
        x = part(x, cosines, sines) if isinstance(part, Block) else part(x)
        part.to("meta")
    return x


@torch.no_grad()
def _their_logits(model: Any, dtype: torch.dtype, ids: Tensor) -> Tensor:
    for part in (model.model.embed_tokens, *model.model.layers, model.model.norm, model.lm_head):
        part.register_forward_pre_hook(lambda part, _: _turn(part, torch.float32))
        part.register_forward_hook(lambda part, *_: _turn(part, dtype))
    return model(ids, use_cache=False).logits


def _turn(part: nn.Module, dtype: torch.dtype) -> None:
    part.to(dtype)
