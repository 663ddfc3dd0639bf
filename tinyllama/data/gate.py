"""kitoken, which encodes faster than sentencepiece, and what it has to prove before its ids are taken.

It must give sentencepiece's ids of trial texts and of a sample of the very corpus, with the very model; and, while it
works, of every document whose hash says so (pack.py). Where it does not, sentencepiece encodes. What comes out is the
same, so nothing that is prepared tells which of them it was.
"""

from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np

from tinyllama.config.schema import CorpusConfig
from tinyllama.data.listing import RawFile, fetched
from tinyllama.data.readers import Document, Findings, read_documents
from tinyllama.data.tokenizer import Encode, Tokenizer

FILES = 5
"""Of a corpus from which documents are tried, spread evenly."""
DOCUMENTS = 16
"""From the beginning and from the end of each file; twice as many from all of it."""
TRIALS = (
    " ", "  ", "   x", "x  y   z    ", "\t", "\t\tx\t", "\n", "\n\n\n", " \n \n", "\r\n x\r\n",
    "\xa0", "\u3000", "\u2028", " " * 100, "\n" * 100, "▁", "x▁y", "▁ ▁", " ▁x",
    "0123456789", "3.14159 1,000,000 1e-9 0x1F ² ½ Ⅷ ٣", "1" * 100,
    "今天天气很好，我们去公园散步。", "日本語のテキスト", "한국어", "नमस्ते दुनिया", "שלום עולם", "e\u0301 é Å ﬁ ﷺ",
    "🙂", "a🙂b", "👩\u200d👩\u200d👧 👍🏽 🇩🇪", "\ud7ff\ue000\ufffd\uffff\U0010ffff", "\ufeffBOM",
    "\x00", "a\x00b\x00\x00", "\x01\x1f\x7f\x85",
    "</s>", "<s>", "<unk>", "x<s>y</s>z<unk>", " </s> <pad>", "<0x0A>", "<0x41>", "[INST] x [/INST]", "<|endoftext|>",
    "a" * 10_000, "ab" * 5_000, "=" * 1_000, "-_" * 500, "aB3/+" * 2_000, "https://example.org/a?b=c&d=%20#e",
)  # fmt: skip


def by_kitoken(exact: Tokenizer) -> Tokenizer:
    """The tokenizer with another engine.

    Raises:
        ImportError: kitoken is not installed.
        ValueError: it does not take the model.
    """
    return Tokenizer(exact.config, exact.model, _encoder(exact.model))


def objection(exact: Tokenizer, corpus: CorpusConfig, files: Sequence[RawFile], scratch: Path) -> str | None:
    """Why kitoken may not encode these files, None if nothing speaks against it.

    Raises:
        ConfigError: a file cannot be read.
    """
    try:
        fast = by_kitoken(exact)
    except ImportError:
        return "kitoken is not installed (pip install kitoken)"
    except ValueError as error:
        return f"it does not take {exact.config.path}: {error}"
    for text in _trials(exact):
        if different(exact, fast, text):
            return f"it encodes {text[:40]!r} differently"
    for place, text in _sample(corpus, files, scratch):
        if exact.can_encode(text) and different(exact, fast, text):
            return f"it encodes {place} differently"
    return None


def different(exact: Tokenizer, fast: Tokenizer, text: str) -> bool:
    """Whether two tokenizers disagree on a document."""
    return not np.array_equal(exact.encode_documents([text])[0], fast.encode_documents([text])[0])


@lru_cache(2)
def _encoder(model: bytes) -> Encode:
    from kitoken import Kitoken

    encode_all = Kitoken.from_sentencepiece(model).encode_all
    return lambda texts: [np.frombuffer(array("I", ids), np.uint32) for ids in encode_all(texts)]


def _trials(exact: Tokenizer) -> Iterator[str]:
    """Texts that tokenizers like to disagree on, and random ones of the model's own pieces."""
    yield from TRIALS
    random = Random(0)
    pieces = [exact.piece(token).replace("▁", " ") for token in range(exact.vocab_size)]
    yield from ("".join(random.choices(pieces, k=100)) for _ in range(200))
    yield from pieces


def _sample(corpus: CorpusConfig, files: Sequence[RawFile], scratch: Path) -> Iterator[tuple[str, str]]:
    """Documents from some of the files, each as FILE:ROW and its text."""
    for number in np.linspace(0, len(files) - 1, min(len(files), FILES)).round().astype(int):
        file = files[number]
        with fetched(file, scratch) as here:
            for document in _spread(read_documents(here.path, file, corpus, Findings())):
                yield f"{file.path}:{document.row}", document.text


def _spread(documents: Iterator[Document]) -> Iterator[Document]:
    """The first and the last, and a random sample of those between: in one pass, of bounded memory."""
    yield from islice(documents, DOCUMENTS)
    random = Random(0)
    chosen: list[Document] = []
    last: deque[Document] = deque(maxlen=DOCUMENTS)
    for number, document in enumerate(documents):
        last.append(document)
        if len(chosen) < 2 * DOCUMENTS:
            chosen.append(document)
        elif (place := random.randrange(number + 1)) < len(chosen):
            chosen[place] = document
    yield from chosen
    yield from last
