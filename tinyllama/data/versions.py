"""Versions of a prepared corpus: which there are, and which of them a configuration reads.

`{corpus}@{fingerprint[:12]}` is a version, whole and never changed; `{corpus}` is a link to the latest.
"""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from tinyllama.config.schema import RunConfig, TokenizerConfig
from tinyllama.data.manifest import MANIFEST, Manifest, corpus_folder, read_manifest
from tinyllama.errors import ConfigError, DamageError

DIGITS = 12


def version_name(corpus: str, fingerprint: str) -> str:
    return f"{corpus}@{fingerprint[:DIGITS]}"


def version_folder(config: RunConfig, name: str) -> Path:
    """The folder of the version that a configuration reads: the latest, or that of corpora.NAME.version.

    The corpus need not be prepared: then nothing is there. Whoever reads on asks once, at the start: a version that
    appears later changes nothing for them.

    Raises:
        ConfigError: no version, or more than one, is what corpora.NAME.version names.
    """
    latest = corpus_folder(config.paths.data, config.tokenizer, config.packing.seq_len, name)
    wanted = config.corpora[name].version
    if wanted is None:
        return latest_version(latest)
    versions = corpus_versions(config.paths.data, config.tokenizer, config.packing.seq_len, name)
    found = [folder for fingerprint, folder in versions.items() if fingerprint.startswith(wanted)]
    if len(found) != 1:
        raise ConfigError(
            f"corpora.{name}.version={wanted} is the beginning of {'more than one' if found else 'no'} fingerprint "
            f"among the versions below {latest.parent}: {_listed(latest)}"
        )
    return found[0]


def latest_version(folder: Path) -> Path:
    """Where the link to the latest version leads; the folder itself if it is no link, as where nothing is prepared."""
    return folder.parent / folder.readlink() if folder.is_symlink() else folder


def corpus_versions(data: str | Path, tokenizer: TokenizerConfig, seq_len: int, name: str) -> dict[str, Path]:
    """The versions of a corpus that stand on this machine, by fingerprint, the oldest first."""
    found = standing_versions(corpus_folder(data, tokenizer, seq_len, name))
    return {manifest.fingerprint: folder for folder, manifest in found.items()}


def standing_versions(folder: Path) -> dict[Path, Manifest]:
    """The versions of the corpus whose latest is `folder`, the oldest first; those that can be understood."""
    found: dict[Path, Manifest] = {}
    for version in sorted(_folders(folder), key=_written):
        try:
            manifest = read_manifest(version)
        except DamageError:
            continue
        if manifest is not None:
            found[version] = manifest
    return found


def _folders(latest: Path) -> Iterator[Path]:
    yield from (path for path in sorted(latest.parent.glob(f"{latest.name}@*")) if (path / MANIFEST).exists())
    if not latest.is_symlink() and (latest / MANIFEST).exists():  # a copy that was made where there are no links
        yield latest


def _listed(latest: Path) -> str:
    """The versions with their dates and sizes, the latest marked."""
    current = latest_version(latest)
    return (
        ", ".join(
            f"{manifest.fingerprint[:DIGITS]} ({datetime.fromtimestamp(_written(folder) / 1e9):%Y-%m-%d %H:%M}, "
            f"{manifest.documents:,} documents{', the latest' if folder == current else ''})"
            for folder, manifest in standing_versions(latest).items()
        )
        or "none; prepare the corpus, or leave the setting out"
    )


def _written(folder: Path) -> int:
    return (folder / MANIFEST).stat().st_mtime_ns
