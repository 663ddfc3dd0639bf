"""Checkpoints of one run: written aside, digested, renamed. Whoever reads never sees half of one."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tinyllama import __version__
from tinyllama.checkpoint.files import describe, sync
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.checkpoint.manifest import Checkpoint, read_manifest, require_file, write_manifest
from tinyllama.planning.progress import Progress
from tinyllama.world import World


class CheckpointStore:
    """Writes the checkpoints of one run, and keeps the last of them, the milestones and the end.

    Args:
        keep: how many of the latest stay.
        protected: positions in tokens of life that are never removed.
        adopted: what the checkpoint from which the run goes on says of itself, to be handed down.
    """

    def __init__(
        self, folder: RunFolder, digest: str, world: World, keep: int, protected: Sequence[int] = (),
        adopted: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        self._folder, self._digest, self._world = folder, digest, world
        self._keep, self._protected, self._adopted = keep, set(protected), adopted

    def write(self, progress: Progress, order_chain: str, save: Callable[[Path], None]) -> None:
        """Keep what `save` writes into the folder it is given. Collective: all ranks call it, and `save` on each.

        `order_chain` counts on the main rank alone.
        """
        final = self._folder.checkpoint(progress.tokens)
        aside = _aside(final)
        if self._world.is_main:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        dist.barrier()
        save(aside)
        dist.barrier()
        if self._world.is_main:
            checkpoint = Checkpoint(
                path=aside,
                digest=self._digest,
                progress=progress,
                order_chain=order_chain,
                world_size=self._world.size,
                versions={"tinyllama": __version__},
                files={entry.name: describe(entry) for entry in sorted(aside.iterdir())},
                adopted=self._adopted,
            )
            _finish(checkpoint, final)
            self._prune()
        dist.barrier()

    def _prune(self) -> None:
        removable = [tokens for tokens in self._folder.checkpoint_tokens() if tokens not in self._protected]
        for tokens in removable[: -self._keep]:
            path = self._folder.checkpoint(tokens)
            # Renamed first, so that a removal cut short leaves nothing that looks like a checkpoint.
            doomed = path.rename(path.with_name(f".{path.name}.removing"))
            shutil.rmtree(doomed)


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
    for name in original.files:
        require_file(original, name)
    final = folder.checkpoint(progress.tokens)
    aside = _aside(final)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name in original.files:
        shutil.copyfile(source / name, aside / name)
    origin = {"path": str(source), "digest": original.digest, "order_chain": original.order_chain}
    copy = replace(
        original,
        path=aside,
        digest=digest,
        progress=progress,
        adopted={**adopted, **origin, "progress": asdict(progress)},
    )
    for name in copy.files:
        require_file(copy, name)
    _finish(copy, final)


def _aside(final: Path) -> Path:
    return final.with_name(f".{final.name}.writing")


def _finish(checkpoint: Checkpoint, final: Path) -> None:
    """Describe a checkpoint that was written aside, and give it its name."""
    write_manifest(checkpoint)
    sync(checkpoint.path)
    shutil.rmtree(final, ignore_errors=True)
    checkpoint.path.rename(final)
    sync(final.parent)
