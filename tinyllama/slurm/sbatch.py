"""What the scripts of all jobs say alike: what is asked of SLURM, the environment, the container. Pure."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyllama.config.schema import ContainerConfig, ContainerKind, SlurmConfig

RUNNING = """\
# What SLURM says of this job, while it still means it to run: nothing once somebody ends it.
running() { scontrol --oneliner show job "$SLURM_JOB_ID" | grep "^JobId=$SLURM_JOB_ID .*JobState=RUNNING "; }
"""
"""To tell TERM for a job from TERM for its ranks alone: so srun ends those whose peer has failed, and a node that SLURM
waited for in vain those of the next life."""


def header(slurm: SlurmConfig, job: Mapping[str, Any]) -> str:
    """The lines that ask for machines: `job` says what this kind of job wants, the settings what is wanted of all."""
    asked = {
        **job,
        "time": _duration(slurm.time_hours),
        # To the script alone: it may come before there are ranks to hear it.
        "signal": f"B:USR1@{slurm.notice_seconds}",
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "mem": None if slurm.memory_gib is None else f"{math.ceil(slurm.memory_gib * 1024)}M",
        "exclusive": slurm.exclusive or None,
        "constraint": slurm.constraint,
        "requeue": True,
        "open-mode": "append",
        "export": "ALL",
        **slurm.options,
    }
    return "".join(f"#SBATCH {option}\n" for option in said(asked))


def said(asked: Mapping[str, Any]) -> list[str]:
    """Options by their long names; None and false leave one out."""
    said = {name: value for name, value in asked.items() if value is not None and value is not False}
    return [f"--{name}" if value is True else f"--{name}={quoted(value)}" for name, value in said.items()]


def quoted(value: object) -> str:
    """As a shell and as sbatch read it; a list's members stand between commas."""
    return shlex.quote(",".join(map(str, value)) if isinstance(value, list) else str(value))


def surroundings(slurm: SlurmConfig, code: Path, variables: Mapping[str, str] | None = None) -> str:
    """What the ranks find in their environment; the person's own lines come last.

    Args:
        code: the copy that they run.
        variables: further ones, with their values as a shell reads them.
    """
    path = f"{quoted(code)}:{quoted(code / 'launchers')}${{PYTHONPATH:+:$PYTHONPATH}}"
    values = {**(variables or {}), "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    lines = [*(f"{name}={value}" for name, value in values.items()), f"export {' '.join(values)}", *slurm.setup]
    return (
        "# Safe: else the working directory, perhaps a checkout, would come before the copy of the code.\n"
        + "".join(f"{line}\n" for line in lines)
    )


def contained(
    container: ContainerConfig | None, mounts: Sequence[Path], directory: Path, *, gpus: bool = False
) -> list[str]:
    """The words after srun's own options that have a command run in the image; quoted.

    Args:
        mounts: what it must see, under the same paths, besides what the settings name.
    """
    if container is None:
        return []
    paths = [*dict.fromkeys(f"{path}:{path}" for path in mounts), *container.mounts]
    if container.kind is ContainerKind.apptainer:
        nvidia = ["--nv"] if gpus else []
        words = ["apptainer", "exec", *nvidia, f"--bind={','.join(paths)}", f"--pwd={directory}", container.image]
        return [" ".join(map(quoted, words))]
    return said(
        {
            "container-image": container.image,
            "container-mounts": paths,
            "container-workdir": directory,
            "container-env": ["MASTER_ADDR", "MASTER_PORT", "PYTHONPATH", "PYTHONSAFEPATH"],  # else the image's stand
        }
    )


def _duration(hours: float) -> str:
    """SLURM counts whole minutes: 1.5 -> 01:30:00, 36 -> 1-12:00:00."""
    minutes = max(1, math.ceil(hours * 60 - 1e-9))
    days, rest = divmod(minutes, 24 * 60)
    clock = f"{rest // 60:02}:{rest % 60:02}:00"
    return f"{days}-{clock}" if days else clock
