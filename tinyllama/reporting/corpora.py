"""What is kept of a corpus when it has been prepared: its pictures, and its record in the tracking store."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyllama.config.schema import CorpusConfig, RunConfig
from tinyllama.data.manifest import Manifest, corpus_folder
from tinyllama.data.versions import latest_version, version_name
from tinyllama.lineage import corpus_record_of, record_corpora
from tinyllama.reporting.plots import save_all

PICTURES = "pictures"
"""Their folder, beside the versions, which never change."""
_CORPORA = "corpora"


@dataclass(frozen=True)
class Prepared:
    """A version that was prepared, or found prepared."""

    corpus: CorpusConfig
    manifest: Manifest
    folder: Path

    @property
    def name(self) -> str:
        return version_name(self.corpus.name, self.manifest.fingerprint)


def prepared_latest(config: RunConfig, corpus: CorpusConfig, manifest: Manifest) -> Prepared:
    """The version that `prepare_corpus` returned the manifest of."""
    folder = corpus_folder(config.paths.data, config.tokenizer, config.packing.seq_len, corpus.name)
    return Prepared(corpus, manifest, latest_version(folder))


def keep(config: RunConfig, versions: Sequence[Prepared]) -> None:
    """Draw what is not drawn yet, beside the versions or into the folder `plots`; record what is not recorded yet."""
    folder = Path(config.plots) if config.plots is not None else versions[0].folder.parent / PICTURES
    pictures = {version.name: _files(folder, _kinds(version)) for version in versions}
    due = [version for version in versions if config.plots is not None or not _exist(pictures[version.name])]
    for version in due:
        _draw_version(version, folder)
    if len(versions) > 1 and (due or not _exist(_files(folder, [_CORPORA]))):
        _draw_corpora(versions, folder)
    records = [
        corpus_record_of(config.family, each.corpus, each.manifest, each.folder, pictures[each.name])
        for each in versions
    ]
    record_corpora(config.tracking, Path(config.paths.runs), records)


def _kinds(version: Prepared) -> list[str]:
    """The names of a version's pictures."""
    kinds = ["lengths", *(["source_sets"] if len(version.manifest.source_sets) > 1 else [])]
    return [f"{version.name}-{kind}" for kind in kinds]


def _files(folder: Path, pictures: Iterable[str]) -> list[Path]:
    return [folder / f"{picture}.{suffix}" for picture in pictures for suffix in ("svg", "png")]


def _exist(files: Iterable[Path]) -> bool:
    return all(file.exists() for file in files)


def _draw_version(version: Prepared, folder: Path) -> None:
    from tinyllama.data.documents import document_lengths
    from tinyllama.reporting.figures.corpora import Amount, amounts_figure, lengths_figure

    manifest, corpus = version.manifest, version.corpus.name
    lengths = document_lengths(version.folder, manifest)
    figures = [lengths_figure(f"{version.name}: length of documents", corpus, lengths, manifest.seq_len)]
    if len(manifest.source_sets) > 1:
        sets = [Amount(name, each["documents"], each["tokens"]) for name, each in manifest.source_sets.items()]
        figures.append(amounts_figure(f"{version.name}: tokens of its source sets", sets, corpus))
    save_all(dict(zip(_kinds(version), figures, strict=True)), folder)


def _draw_corpora(versions: Sequence[Prepared], folder: Path) -> None:
    from tinyllama.reporting.figures.corpora import Amount, amounts_figure

    amounts = [Amount(each.corpus.name, each.manifest.documents, each.manifest.tokens) for each in versions]
    save_all({_CORPORA: amounts_figure("Tokens of the prepared corpora", amounts)}, folder)
