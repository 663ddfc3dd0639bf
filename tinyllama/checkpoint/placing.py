"""How the folders of checkpoints get their names, and lose them: always whole, always by a rename."""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tinyllama.checkpoint.files import forget, write_durably
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.checkpoint.manifest import Checkpoint, read_manifest, require_files, write_manifest
from tinyllama.data.disk import sync
from tinyllama.planning.progress import Progress


def place(checkpoint: Checkpoint, folder: RunFolder) -> None:
    """Describe a checkpoint that was written aside, read it back, and give it its name.

    Raises:
        DamageError: it does not read as it was written.
    """
    write_manifest(checkpoint)
    sync(checkpoint.path)
    for entry in checkpoint.path.iterdir():
        forget(entry)
    require_files(read_manifest(checkpoint.path))
    final = folder.checkpoint(checkpoint.progress.tokens)
    replaced = _rename_for_removal(folder, final) if final.exists() else None
    checkpoint.path.rename(final)
    sync(final.parent)
    with suppress(OSError):  # the checkpoint is safe without
        write_durably(folder.latest, final.name + "\n")
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)


def remove(folder: RunFolder, path: Path) -> None:
    """Renamed first, so that a removal cut short leaves nothing that looks like a checkpoint."""
    shutil.rmtree(_rename_for_removal(folder, path))


def discard(folder: RunFolder, aside: Path) -> None:
    """Remove what never became a checkpoint, as far as that can be done."""
    with suppress(OSError):  # another rank that still writes into it by name shall not find it
        aside = aside.rename(folder.removing(aside))
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(OSError):  # it holds others; an empty one would say that they were taken away
        folder.checkpoints.rmdir()


def remove_leftovers(folder: RunFolder) -> None:
    """What writing and removing left behind when they were cut short."""
    for path in folder.leftovers():
        discard(folder, path)


def adopt_checkpoint(
    source: Path, folder: RunFolder, digest: str, progress: Progress, adopted: Mapping[str, Any]
) -> None:
    """Copy a checkpoint of any run into a run's folder, as that run's own state at `progress`.

    Args:
        source: the checkpoint's folder.
        digest: of the run that adopts it.
        adopted: what the manifest is to say of the adoption; where it came from and its order chain are added.

    Raises:
        DamageError: the source, or the copy, is not what the source's manifest says.
    """
    original = read_manifest(source)
    require_files(original)
    remove_leftovers(folder)
    aside = folder.writing(progress.tokens)
    aside.mkdir(parents=True)
    for name in original.files:
        shutil.copyfile(source / name, aside / name)
        sync(aside / name)
    origin = {"path": str(source), "digest": original.digest, "order_chain": original.order_chain}
    place(
        replace(
            original,
            path=aside,
            digest=digest,
            progress=progress,
            adopted={**adopted, **origin, "progress": asdict(progress)},
            watch=None,  # of another run, with that run's steps
        ),
        folder,
    )


def _rename_for_removal(folder: RunFolder, path: Path) -> Path:
    doomed = folder.removing(path)
    shutil.rmtree(doomed, ignore_errors=True)
    return path.rename(doomed)
