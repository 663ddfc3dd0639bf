"""The processes of a run: those that others started or supervisor.py starts, and what each rank sets up."""

import ctypes
import math
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed

from tinyllama.config.schema import ClusterConfig
from tinyllama.engine import heartbeat
from tinyllama.engine.supervisor import Main, Supervisor, rank_environment
from tinyllama.errors import TinyllamaError
from tinyllama.world import World, given_ranks

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
"""Of malloc.h."""


def run_ranks(
    main: Main, args: tuple, processes: int, timeout_minutes: float = math.inf, faults: Path | None = None
) -> int:
    """Run `main(*args)` in every rank of this node and return the exit code.

    Under torchrun or srun this process is one rank already. Otherwise `processes` ranks are started here: one alone in
    this process, several forked from it, so import what they need before. SIGTERM, SIGINT and SIGUSR1 reach them all.
    When one fails the others are ended, and its failure is the one that is told.

    Args:
        timeout_minutes: how long the ranks' collectives wait for a rank.
        faults: the file that gets the stack traces of ranks that were started here and fail.

    Raises:
        TinyllamaError: what `main` raised, in whichever rank it did first; or how that rank ended otherwise.
    """
    given = _place(os.environ)
    if given is None and processes > 1:
        return Supervisor(main, args, processes, timeout_minutes, faults).outcome()
    with _environment(rank_environment(0, 1, port=0) if given is None else given), heartbeat.doing("while starting"):
        try:
            return main(*args) or 0
        except RuntimeError as error:  # of gloo and NCCL
            word = heartbeat.own()
            if given is None or word.silent_seconds < timeout_minutes * 60:
                raise
            raise TinyllamaError(
                f"rank {World.from_environment().rank} has waited for cluster.timeout_minutes={timeout_minutes:g} "
                f"{word.where}: another rank has ended or hangs; the same command goes on from the last checkpoint"
            ) from error


def initialize(cluster: ClusterConfig) -> World:
    """Inside a rank: its place, device, CPU threads and process group."""
    world = World.from_environment()
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank)
    else:
        _keep_freed_memory()
    torch.set_num_threads(cluster.threads or max(1, len(os.sched_getaffinity(0)) // world.local_size))
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))  # DeepSpeed wants it
    with heartbeat.doing("while meeting the other ranks"):
        torch.distributed.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo",
            timeout=timedelta(minutes=cluster.timeout_minutes),
            store=torch.distributed.HashStore() if world.size == 1 else None,  # alone it needs no port
            rank=world.rank,
            world_size=world.size,
        )
    return world


def finalize() -> None:
    """Leave the process group, so that another run may follow in this process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def device() -> torch.device:
    """What this rank computes on."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _keep_freed_memory() -> None:
    """Have glibc keep what tensors give back. Large ones it would otherwise fetch from the system anew in every step,
    page by page: a tenth of the time of a step, and more of the optimizer's.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
        mallopt(_M_TOP_PAD, 64 * 2**20)


# ---------------------------------------------------------------- ranks that others started


def _place(environ: Mapping[str, str]) -> dict[str, str] | None:
    """The place that torchrun or srun gave to this process, as environment variables; None without them."""
    if given_ranks(environ) is None:
        return None
    if "RANK" in environ:
        return {}
    world = World.from_environment(environ)
    given = {
        "RANK": str(world.rank),
        "WORLD_SIZE": str(world.size),
        "LOCAL_RANK": str(world.local_rank),
        "LOCAL_WORLD_SIZE": str(world.local_size),
    }
    if "MASTER_ADDR" not in environ:
        nodes = environ.get("SLURM_STEP_NODELIST", environ["SLURM_JOB_NODELIST"])
        listing = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
        given["MASTER_ADDR"] = listing.stdout.split()[0]
    if "MASTER_PORT" not in environ:
        given["MASTER_PORT"] = str(20_000 + int(environ["SLURM_JOB_ID"]) % 10_000)  # the same in every rank
    return given


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
