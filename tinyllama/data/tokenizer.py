"""Text <-> token ids by a sentencepiece model, as Llama 2 uses it; and the training of a small one."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray
from sentencepiece.sentencepiece_model_pb2 import ModelProto, TrainerSpec  # type: ignore[attr-defined]

from tinyllama.config.schema import TokenizerConfig
from tinyllama.data.packing import token_dtype
from tinyllama.data.seams import STRETCH, cut, joined_pairs
from tinyllama.errors import ConfigError

UNK, BOS, EOS = 0, 1, 2
LONGEST_STRETCH = 1 << 22
"""Characters without a seam that are encoded; for these it takes 200 MiB, and without a limit all memory."""
AT_A_TIME = 256
"""Stretches."""
GUARD = "\n"
"""Stands before a stretch that is encoded alone, for what it was cut from: a model marks where texts begin."""
_TEXT = (ModelProto.SentencePiece.NORMAL, ModelProto.SentencePiece.USER_DEFINED, ModelProto.SentencePiece.UNUSED)

Encode = Callable[[list[str]], Sequence[NDArray[np.integer]]]
"""Texts -> the ids of each, nothing added."""


class Tokenizer:
    """A sentencepiece model with the BOS and EOS rules of its config."""

    def __init__(self, config: TokenizerConfig, model: bytes, encode: Encode | None = None) -> None:
        self.config = config
        self.model = model
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._encode = encode or self._encode_by_sentencepiece

    @classmethod
    def load(cls, config: TokenizerConfig) -> "Tokenizer":
        """Read the model that the config names.

        Raises:
            ConfigError: the file is missing or no sentencepiece model, or its vocabulary is not the config's.
        """
        path = Path(config.path)
        if not path.is_file():
            raise ConfigError(
                f"tokenizer.path={path} does not exist; put the {config.name} model there, "
                "or train the demo's: python -m tinyllama.sample +scale=demo"
            )
        try:
            tokenizer = cls(config, path.read_bytes())
        except RuntimeError as error:
            raise ConfigError(f"tokenizer.path={path} is no sentencepiece model: {error}") from error
        if tokenizer.vocab_size != config.vocab_size:
            raise ConfigError(
                f"tokenizer.vocab_size={config.vocab_size} differs from the {tokenizer.vocab_size} pieces of {path}; "
                "set it (and model.vocab_size) to that, or name another model"
            )
        return tokenizer

    @cached_property
    def digest(self) -> str:
        return sha256(self.model).hexdigest()

    @property
    def vocab_size(self) -> int:
        return int(self._pieces.vocab_size())

    @property
    def bos(self) -> int:
        return int(self._pieces.bos_id())

    @property
    def eos(self) -> int:
        return int(self._pieces.eos_id())

    @property
    def has_byte_fallback(self) -> bool:
        """Whether it spells in bytes what it has no piece for, so that nothing is unknown to it."""
        return any(map(self.is_byte, range(self.vocab_size)))

    def piece(self, token: int) -> str:
        return str(self._pieces.id_to_piece(token))

    def is_byte(self, token: int) -> bool:
        return bool(self._pieces.is_byte(token))

    def is_unknown(self, token: int) -> bool:
        return bool(self._pieces.is_unknown(token))

    def is_special(self, token: int) -> bool:
        """Whether it stands for no text."""
        return bool(self._pieces.is_control(token) or self._pieces.is_unused(token))

    def encode(self, text: str) -> list[int]:
        """The ids of a text, nothing added."""
        return list(self._pieces.encode(text))

    def encode_documents(self, texts: Sequence[str]) -> list[NDArray[np.integer]]:
        """The ids of whole documents, with BOS and EOS where the config adds them.

        They are those of `encode`, but of long texts found stretch by stretch, in less time and memory.
        """
        stretches, follows = [], []
        for text in texts:
            for number, stretch in enumerate(self._stretches(text)):
                stretches.append(GUARD + stretch if number else stretch)
                follows.append(number > 0)
        bos, eos = self._added
        runs: list[list[NDArray[np.integer]]] = []
        for begin in range(0, len(stretches), AT_A_TIME):
            end = begin + AT_A_TIME
            for ids, follow in zip(self._encode(stretches[begin:end]), follows[begin:end], strict=True):
                if follow:
                    runs[-1].append(ids[self._guard_tokens :])
                else:
                    runs.append([bos, ids])
        dtype = token_dtype(self.vocab_size)
        return [np.concatenate([*run, eos], dtype=dtype, casting="unsafe") for run in runs]

    def can_encode(self, text: str) -> bool:
        """Whether a document is within what memory allows: no stretch of it is longer than LONGEST_STRETCH."""
        return len(text) <= LONGEST_STRETCH or all(len(each) <= LONGEST_STRETCH for each in self._stretches(text))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._pieces.decode([int(token) for token in ids]))

    def _encode_by_sentencepiece(self, texts: list[str]) -> Sequence[NDArray[np.integer]]:
        encoded: list[NDArray[np.integer]] = self._pieces.encode(texts, return_type="numpy", num_threads=1)
        return encoded

    def _stretches(self, text: str) -> Iterator[str]:
        if len(text) <= STRETCH or self._joined is None:
            return iter([text])
        return cut(text, self._joined)

    @cached_property
    def _joined(self) -> frozenset[str] | None:
        return _telling_pairs(self.model)

    @cached_property
    def _guard_tokens(self) -> int:
        return len(self.encode(GUARD))

    @cached_property
    def _added(self) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """What stands before and after each document."""
        return np.array([self.bos] * self.config.add_bos, np.int32), np.array(
            [self.eos] * self.config.add_eos, np.int32
        )


def train_tokenizer(texts: Iterable[str], path: Path, vocab_size: int = 4096) -> None:
    """Train a byte-pair model as Llama 2's is made: byte fallback, split digits, unk 0, bos 1, eos 2, no padding.

    The same texts always give the same file.
    """
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        # Newlines stay out of the pieces and are encoded as bytes; long lines would be dropped silently.
        sentence_iterator=(line for text in texts for line in text.splitlines() if line),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        split_digits=True,
        character_coverage=0.9995,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        max_sentence_length=1 << 16,
        unk_id=UNK,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    aside.write_bytes(model.getvalue())
    aside.replace(path)


@lru_cache(2)
def _telling_pairs(model: bytes) -> frozenset[str] | None:
    """What tells the seams of a text (seams.py); None where it does not tell them."""
    proto = ModelProto.FromString(model)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    joined = joined_pairs(piece.piece for piece in proto.pieces if piece.type in _TEXT)
    tells = (
        trainer.model_type == TrainerSpec.BPE
        and trainer.byte_fallback  # else neighbours that it does not know are read as one
        and not trainer.treat_whitespace_as_suffix
        and not normalizer.precompiled_charsmap
        and not normalizer.remove_extra_whitespaces
        and normalizer.escape_whitespaces
        and not any(GUARD in pair for pair in joined)
    )
    return joined if tells else None
