"""The processes of a run as a value: who am I, among how many, on which node."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_TASKS = "SLURM_STEP_NUM_TASKS"
"""How many tasks srun has started. The script of a job, which has its own SLURM_PROCID, lacks it."""


@dataclass(frozen=True)
class World:
    """Place of one process: `rank` of `size` in all, `local_rank` of `local_size` on this node."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "World":
        """What torchrun, srun or our own start-up put into the environment; alone without it."""
        if "RANK" in environ:
            size = int(environ["WORLD_SIZE"])
            return cls(
                rank=int(environ["RANK"]),
                size=size,
                local_rank=int(environ.get("LOCAL_RANK", environ.get("SLURM_LOCALID", "0"))),
                local_size=int(environ.get("LOCAL_WORLD_SIZE", size)),
            )
        if _TASKS in environ:
            return cls(
                rank=int(environ["SLURM_PROCID"]),
                size=int(environ[_TASKS]),
                local_rank=int(environ["SLURM_LOCALID"]),
                local_size=_per_node(environ["SLURM_STEP_TASKS_PER_NODE"])[int(environ["SLURM_NODEID"])],
            )
        return cls()

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def visible_gpus(environ: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> int:
    """How many GPUs this process may use, without loading torch."""
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return len([name for name in chosen.split(",") if name.strip() not in ("", "-1")])
    return sum(path.name.removeprefix("nvidia").isdigit() for path in devices.glob("nvidia*"))


def given_ranks(environ: Mapping[str, str] = os.environ) -> int | None:
    """How many ranks torchrun or srun has started in all, this process among them; None if a person started it."""
    if "RANK" in environ:
        return int(environ["WORLD_SIZE"])
    tasks = int(environ.get(_TASKS, "1"))
    return tasks if tasks > 1 else None


def _per_node(tasks: str) -> list[int]:
    """Tasks of each node, as SLURM writes them: "4(x2),3" -> [4, 4, 3]."""
    counts = []
    for group in tasks.split(","):
        count, _, times = group.rstrip(")").partition("(x")
        counts += [int(count)] * int(times or 1)
    return counts
