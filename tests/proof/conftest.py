"""Prepared corpora, as the tests of data make them."""

from tests.data.conftest import corpus, folder, prepare, sentences, three_parts, tokenizer

__all__ = ["corpus", "folder", "prepare", "sentences", "three_parts", "tokenizer"]
