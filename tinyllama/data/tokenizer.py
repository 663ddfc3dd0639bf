"""Text <-> token ids by a sentencepiece model, as Llama 2 uses it; and the training of a small one."""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import sentencepiece

from tinyllama.config.schema import TokenizerConfig
from tinyllama.errors import ConfigError

UNK, BOS, EOS = 0, 1, 2


class Tokenizer:
    """A sentencepiece model with the BOS and EOS rules of its config."""

    def __init__(self, config: TokenizerConfig, model: bytes) -> None:
        self.config = config
        self.digest = sha256(model).hexdigest()
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)

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

    @property
    def vocab_size(self) -> int:
        return int(self._pieces.vocab_size())

    @property
    def bos(self) -> int:
        return int(self._pieces.bos_id())

    @property
    def eos(self) -> int:
        return int(self._pieces.eos_id())

    def encode(self, text: str) -> list[int]:
        """The ids of a text, nothing added."""
        return list(self._pieces.encode(text))

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of whole documents, with BOS and EOS where the config adds them."""
        config = self.config
        encoded: list[list[int]] = self._pieces.encode(
            list(texts), add_bos=config.add_bos, add_eos=config.add_eos, num_threads=1
        )
        return encoded

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._pieces.decode([int(token) for token in ids]))


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
