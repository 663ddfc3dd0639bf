"""What a job is to run, kept as it is at submission: later edits of the code, or of conf/, change nothing."""

import os
import shutil
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from tinyllama.checkpoint.layout import RunFolder
from tinyllama.config.load import from_yaml, to_yaml
from tinyllama.config.location import COMMIT, code_folders, git_commit
from tinyllama.config.schema import RunConfig
from tinyllama.data.inventory import pinned
from tinyllama.errors import DamageError

_DIGITS = 12


def freeze_code(root: Path) -> Path:
    """Copy the code that runs now into a folder below `root` that is named by its content, unless it is there.

    Returns: the folder. It holds tinyllama/, conf/, launchers/ and COMMIT; Python finds all with it and its
        launchers/ on PYTHONPATH.

    Raises:
        DamageError: the folder is there, and its content is not what its name says.
    """
    files = {
        f"{name}/{path.relative_to(folder)}": path.read_bytes()
        for name, folder in code_folders().items()
        for path in _sources(folder)
    } | {COMMIT: f"{git_commit() or ''}\n".encode()}
    frozen = root / ".code" / _digest(files)
    if not frozen.is_dir():
        _write(files, frozen)
    if any(not (frozen / name).is_file() or (frozen / name).read_bytes() != files[name] for name in files):
        raise DamageError(
            f"{frozen} is not the code that it was made from any more; when no job is left that runs it, remove it"
        )
    return frozen


def freeze_path(folder: RunFolder, configs: Sequence[RunConfig]) -> None:
    """Keep the configs of a run and its ancestors, the root first, each with the versions of the corpora of now."""
    folder.job_configs.mkdir(parents=True)
    for place, config in enumerate(configs):
        (folder.job_configs / f"{place}-{config.stage.name}.yaml").write_text(to_yaml(pinned(config)), encoding="utf-8")


def frozen_path(folder: RunFolder) -> tuple[RunConfig, ...]:
    """The configs that were kept, the root first.

    Raises:
        DamageError: there are none, or one cannot be understood.
    """
    files = sorted(folder.job_configs.glob("*.yaml"), key=lambda path: int(path.name.partition("-")[0]))
    if not files:
        raise DamageError(f"{folder.job_configs} has no configs; the run is to be submitted anew")
    return tuple(map(from_yaml, files))


def _sources(folder: Path) -> list[Path]:
    """The files that people wrote, not what Python makes of them."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def _digest(files: Mapping[str, bytes]) -> str:
    said = sha256()
    for name, content in sorted(files.items()):
        said.update(f"{name}\0{len(content)}\0".encode() + content)
    return said.hexdigest()[:_DIGITS]


def _write(files: Mapping[str, bytes], frozen: Path) -> None:
    """All of them or none, whoever writes the same at the same time."""
    aside = frozen.with_name(f".{frozen.name}.{os.getpid()}.writing")
    for name, content in files.items():
        path = aside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    try:
        aside.rename(frozen)
    except OSError:
        shutil.rmtree(aside)
        if not frozen.is_dir():  # it is not that another was faster
            raise
