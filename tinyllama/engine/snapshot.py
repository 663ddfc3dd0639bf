"""One rank's part of a state in host memory, and how it comes onto the disk. engine/zero.py takes it."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyllama.engine import tensorfile
from tinyllama.engine.tensorfile import Piece, Shapes

MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = ("weights", *MOMENTS)
OPTIMIZER = "optimizer.json"


@dataclass(frozen=True)
class Snapshot:
    """What the ranks' snapshots of one moment write into one folder depends on neither world, stage nor precision."""

    shapes: Shapes
    """Of all parameters of the model."""
    pieces: Mapping[str, Sequence[Piece]]
    """What this rank keeps in fp32, by kind: weights and AdamW's moments."""
    steps: int | None
    """As AdamW counts them; None on all ranks but the main one, which alone writes it down."""

    @property
    def total_bytes(self) -> int:
        """Of the files that all ranks write together."""
        return len(KINDS) * tensorfile.size(self.shapes)

    def write(self, folder: Path) -> None:
        """Into a folder into which the other ranks write theirs, in any order; forced to the disk on return.

        No collective, so that a thread may do it.
        """
        for kind in KINDS:
            tensorfile.write(file_of(folder, kind), self.shapes, self.pieces[kind])
        if self.steps is not None:
            with (folder / OPTIMIZER).open("w", encoding="utf-8") as file:
                json.dump({"step": self.steps}, file)
                file.flush()
                os.fsync(file.fileno())


def file_of(folder: Path, kind: str) -> Path:
    """Where a checkpoint keeps its weights, or one of the moments."""
    return folder / f"{kind}.safetensors"
