"""Prepared corpora of a configuration, as planning wants them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tinyllama.config.schema import CorpusConfig, RunConfig
from tinyllama.data import pretrained
from tinyllama.data.manifest import Manifest, corpus_folder, read_manifest
from tinyllama.errors import ConfigError
from tinyllama.planning.corpora import Corpus, Inventory
from tinyllama.planning.identity import digest


def take_inventory(path: Sequence[RunConfig]) -> Inventory:
    """What a stage and its ancestors (the root first) are made of.

    Corpora are known from their manifests, or by their published sizes while they are not prepared.

    Raises:
        ConfigError: corpora were prepared with different tokenizers, or the Hugging Face folder does not fit.
        DamageError: a manifest cannot be understood.
    """
    config = path[-1]
    manifests = {name: read_manifest(folder) for name, folder in corpus_folders(config, config.corpora).items()}
    prepared = {name: manifest for name, manifest in manifests.items() if manifest is not None}
    digests = {manifest.tokenizer_digest: name for name, manifest in prepared.items()}
    if len(digests) > 1:
        raise ConfigError(
            f"corpora {' and '.join(sorted(digests.values()))} were prepared with different models of "
            f"tokenizer={config.tokenizer.name}; prepare them again with the present one"
        )
    corpora = {
        name: _from_manifest(prepared[name]) if name in prepared else _from_config(corpus, config.model.seq_len)
        for name, corpus in config.corpora.items()
    }
    tokenizer_digest = next(iter(digests), None)
    return Inventory(corpora, tokenizer_digest, pretrained.origin_of(path[0], tokenizer_digest))


def corpus_folders(config: RunConfig, names: Iterable[str]) -> dict[str, Path]:
    """Where prepared corpora lie."""
    return {name: corpus_folder(config.paths.data, config.tokenizer, config.model.seq_len, name) for name in names}


def _from_manifest(manifest: Manifest) -> Corpus:
    return Corpus(manifest.corpus, manifest.fingerprint, manifest.train.shard_samples)


def _from_config(corpus: CorpusConfig, seq_len: int) -> Corpus:
    return Corpus(
        corpus.name,
        digest({"not prepared": corpus.name, "tokens": corpus.tokens}),
        shard_samples=(corpus.tokens // seq_len,),
        prepared=False,
    )
