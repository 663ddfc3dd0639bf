"""Prepared corpora of a configuration, as planning wants them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tinyllama.config.schema import CorpusConfig, RunConfig, TokenizerConfig
from tinyllama.data import pretrained
from tinyllama.data.manifest import Manifest, corpus_folder, read_manifest
from tinyllama.data.remote_corpora import CACHE, remote_folder
from tinyllama.data.versions import version_folder, version_name
from tinyllama.errors import ConfigError
from tinyllama.planning.corpora import Corpus, Inventory
from tinyllama.planning.identity import digest


def take_inventory(path: Sequence[RunConfig]) -> Inventory:
    """What a stage and its ancestors (the root first) are made of.

    Corpora are known from their manifests, or by their published sizes while they are not prepared.

    Raises:
        ConfigError: a version is missing, corpora were prepared with different tokenizers, or the Hugging Face folder
            does not fit.
        DamageError: a manifest cannot be understood.
    """
    config = path[-1]
    prepared = _manifests(config)
    digests = {manifest.tokenizer_digest: name for name, manifest in prepared.items()}
    if len(digests) > 1:
        raise ConfigError(
            f"corpora {' and '.join(sorted(digests.values()))} were prepared with different models of "
            f"tokenizer={config.tokenizer.name}; prepare them again with the present one"
        )
    for name, manifest in prepared.items():
        _require_same_marks(config.tokenizer, name, manifest)
    corpora = {
        name: _from_manifest(prepared[name]) if name in prepared else _from_config(corpus, config.packing.seq_len)
        for name, corpus in config.corpora.items()
    }
    tokenizer_digest = next(iter(digests), None)
    return Inventory(corpora, tokenizer_digest, pretrained.origin_of(path[0], tokenizer_digest))


def corpus_folders(config: RunConfig, corpora: Mapping[str, Corpus]) -> dict[str, Path]:
    """Where the versions lie that corpora were planned on, whichever are the latest by now."""
    data = Path(config.paths.data) / (CACHE if config.paths.remote else "")
    folders = {}
    for name, corpus in corpora.items():
        latest = corpus_folder(data, config.tokenizer, config.packing.seq_len, name)
        version = latest.with_name(version_name(name, corpus.fingerprint))
        # The place of the link holds a copy where there are no links.
        folders[name] = version if version.exists() or not latest.is_dir() or latest.is_symlink() else latest
    return folders


def chosen_folder(config: RunConfig, name: str) -> Path:
    """Where the version lies that a configuration reads; nothing is there while the corpus is not prepared.

    Raises:
        ConfigError: no version, or more than one, is what corpora.NAME.version names, or the remote cannot be used.
        DamageError: a manifest cannot be understood.
    """
    return remote_folder(config, name) if config.paths.remote else version_folder(config, name)


def pinned(config: RunConfig) -> RunConfig:
    """The same configuration, which keeps to the versions that it reads now when others appear.

    Raises: as `chosen_folder`.
    """
    versions = {name: manifest.fingerprint for name, manifest in _manifests(config).items()}
    return replace(
        config,
        corpora={name: replace(corpus, version=versions.get(name)) for name, corpus in config.corpora.items()},
    )


def _manifests(config: RunConfig) -> dict[str, Manifest]:
    """Of the corpora that are prepared."""
    manifests = {name: read_manifest(chosen_folder(config, name)) for name in config.corpora}
    return {name: manifest for name, manifest in manifests.items() if manifest is not None}


def _require_same_marks(tokenizer: TokenizerConfig, name: str, manifest: Manifest) -> None:
    for mark in ("add_eos", "add_bos"):
        wanted, found = getattr(tokenizer, mark), getattr(manifest, mark)
        if wanted != found:
            raise ConfigError(
                f"tokenizer.{mark}={str(wanted).lower()}, but corpus {name} was prepared with {str(found).lower()}; "
                "set that, or prepare it again"
            )


def _from_manifest(manifest: Manifest) -> Corpus:
    return Corpus(manifest.corpus, manifest.fingerprint, manifest.train.shard_samples)


def _from_config(corpus: CorpusConfig, seq_len: int) -> Corpus:
    return Corpus(
        corpus.name,
        digest({"not prepared": corpus.name, "tokens": corpus.tokens}),
        shard_samples=(corpus.tokens // seq_len,),
        prepared=False,
    )
