"""Corpora that lie on a remote: which version a run reads, by its manifest, and where it is cached on this machine.

    {paths.remote}/shards/llama2-2048/slimpajama/manifest.json                 the latest version's, a copy
    {paths.remote}/shards/llama2-2048/slimpajama@0123456789ab/manifest.json    a version: as `prepare` made it
    {paths.data}/cache/shards/llama2-2048/slimpajama@0123456789ab/             what was fetched of it

Light, as inventory.py is: planning asks for manifests without torch. Shards come by remote.py.
"""

import json
import os
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile

from tinyllama.config.schema import RunConfig
from tinyllama.data.manifest import MANIFEST, corpus_folder
from tinyllama.data.remote_files import RemoteFiles
from tinyllama.data.versions import DIGITS, version_name
from tinyllama.errors import ConfigError, DamageError, unknown

CACHE = "cache"


def remote_folder(config: RunConfig, name: str) -> Path:
    """Where the chosen version of a corpus of paths.remote is cached, its manifest at least.

    A process asks once: what is uploaded while it runs changes nothing for it. A version whose fingerprint is given
    by twelve digits or more is not asked for again once it is here. The folder has no manifest where the remote lacks
    the corpus: it counts as not prepared then.

    Raises:
        ConfigError: the remote cannot be used, or lacks the version.
        DamageError: a manifest cannot be understood.
    """
    assert config.paths.remote is not None, "asked for by those that have a remote"
    place = corpus_folder("", config.tokenizer, config.packing.seq_len, name)
    return _fetched(config.paths.remote, Path(config.paths.data) / CACHE, place, config.corpora[name].version)


def remote_address(config: RunConfig, folder: Path) -> str:
    """Where on the remote lies what is cached in a folder."""
    return f"{(config.paths.remote or '').rstrip('/')}/{folder.relative_to(Path(config.paths.data) / CACHE)}"


@cache
def _fetched(address: str, cached: Path, place: Path, version: str | None) -> Path:
    if version is not None and len(version) >= DIGITS:
        folder = cached / place.with_name(version_name(place.name, version))
        if (folder / MANIFEST).exists():
            return folder
    remote = RemoteFiles(address)
    source = place if version is None else place.with_name(_whole_name(remote, place, version))
    content = remote.read(f"{source}/{MANIFEST}")
    if content is None:
        if version is not None:
            raise ConfigError(
                f"corpora.{place.name}.version={version}: {remote.address}/{source} has no {MANIFEST}, its upload "
                "did not end; run it again (python -m tinyllama.prepare action=upload)"
            )
        if not remote.holds_anything():
            raise ConfigError(
                f"paths.remote={address} does not exist or holds nothing; correct the address, or bring the prepared "
                f"corpora there: python -m tinyllama.prepare action=upload"
            )
        return cached / place
    try:
        fingerprint = str(json.loads(content)["fingerprint"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamageError(
            f"{remote.address}/{source}/{MANIFEST} is damaged ({error!r}); upload the corpus again"
        ) from error
    folder = cached / place.with_name(version_name(place.name, fingerprint))
    folder.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=folder, delete=False) as aside:
        aside.write(content)
    os.replace(aside.name, folder / MANIFEST)
    return folder


def _whole_name(remote: RemoteFiles, place: Path, version: str) -> str:
    """The folder of the version that begins with these digits."""
    begin = version_name(place.name, "")
    versions = [name.removeprefix(begin) for name in remote.folders(place.parent.as_posix()) if name.startswith(begin)]
    found = [known for known in versions if known.startswith(version[:DIGITS])]
    if not found:
        where = f"{remote.address}/{place.parent}"
        if not versions:
            raise ConfigError(
                f"corpora.{place.name}.version={version}: {where} has no version of {place.name}; upload it, or see "
                f"that paths.remote, the tokenizer and packing.seq_len are those it was prepared with"
            )
        raise unknown(f"corpora.{place.name}.version", version, versions)
    if len(found) > 1:
        raise ConfigError(
            f"corpora.{place.name}.version={version} fits {' and '.join(sorted(found))}; give more of its digits"
        )
    return version_name(place.name, found[0])
