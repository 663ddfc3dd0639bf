"""What is asked of SLURM's queue. The only file that calls its commands."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tinyllama.errors import ConfigError

_ASKED = "#SBATCH --"

_SETTINGS = {
    "partition": "cluster.slurm.partition",
    "account": "cluster.slurm.account",
    "qos": "cluster.slurm.qos",
    "time": "cluster.slurm.time_hours",
    "nodes": "cluster.nodes",
    "ntasks-per-node": "cluster.processes",
    "cpus-per-task": "cluster.slurm.cpus_per_rank",
    "gpus-per-node": "cluster.slurm.gpus_per_node",
    "mem": "cluster.slurm.memory_gib",
    "constraint": "cluster.slurm.constraint",
}
"""Where an option of sbatch comes from."""

_ABOUT = {
    "partition": ["partition"],
    "account": ["account"],
    "qos": ["qos"],
    "time": ["time"],
    "node|processor|cpu": ["nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "mem", "constraint"],
    "gres|gpu|generic resource": ["gpus-per-node"],
    "memory": ["mem"],
    "feature": ["constraint"],
}
"""What a word of sbatch's reason points at: options, of which some may not be given."""


@dataclass(frozen=True)
class QueuedJob:
    """A job that waits, runs, or is ending."""

    id: str
    name: str
    state: str
    """PENDING, RUNNING, ..."""
    reason: str
    """Why it does not run, in SLURM's word; None when it does."""


def available() -> bool:
    """Whether jobs can be submitted from this machine."""
    return shutil.which("sbatch") is not None


def require_available() -> None:
    """
    Raises:
        ConfigError: they cannot.
    """
    if not available():
        raise ConfigError(
            "hydra/launcher=slurm needs sbatch, and this machine has none; give the command on a login node of the "
            "cluster, or add hydra/launcher=local to train here"
        )


def submit(script: Path) -> str:
    """Queue the job that a file describes; its id.

    Raises:
        ConfigError: SLURM refuses it: its own reason, and the settings that it may be about.
    """
    require_available()
    text = script.read_text(encoding="utf-8")
    asked = dict(_option(line) for line in text.splitlines() if line.startswith(_ASKED))
    done = _call(["sbatch", "--parsable", str(script)], _environment(asked))
    if done.returncode:
        raise ConfigError(_refusal(_reason(done.stderr), asked))
    return done.stdout.strip().split(";")[0]  # after it stands the cluster's name, where there are several


def queue(ids: Iterable[str]) -> dict[str, QueuedJob]:
    """Those of the jobs that wait, run or are ending, by id; an array of jobs counts as one.

    Raises:
        ConfigError: SLURM does not answer.
    """
    ids = list(ids)
    if not ids:
        return {}
    done = _call(["squeue", "--noheader", f"--jobs={','.join(ids)}", "--format=%F|%T|%r|%j"])
    if done.returncode:
        if "Invalid job id" not in done.stderr:
            raise ConfigError(f"squeue does not tell what is in SLURM's queue: {_reason(done.stderr)}")
        # It says so of a single id that has been forgotten, and may of several.
        return {} if len(ids) == 1 else {job: found for one in ids for job, found in queue([one]).items()}
    rows = [line.strip().split("|", 3) for line in done.stdout.splitlines()]
    return {job: QueuedJob(job, name, state, reason) for job, state, reason, name in rows}


def cancel(ids: Iterable[str]) -> None:
    """Have the jobs end, those that wait without ever beginning."""
    _scancel([], ids)


def stop(ids: Iterable[str]) -> None:
    """Ask running jobs to save and leave: first their scripts, so that none queues its job again, then the ranks."""
    _scancel(["--batch", "--signal=TERM"], ids)
    _scancel(["--signal=TERM"], ids)


def _scancel(options: list[str], ids: Iterable[str]) -> None:
    """What it says of jobs that have ended meanwhile, or have no ranks yet, is no matter."""
    if ids := list(ids):
        _call(["scancel", "--quiet", *options, *ids])


def _call(command: list[str], environment: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    # In a session of its own a terminal's Ctrl-C does not reach it: whether a job was queued is always known.
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, start_new_session=True
    )  # fmt: skip


def _environment(asked: Mapping[str, str]) -> dict[str, str]:
    """Ours, without what would overrule the script, or speaks of a job in which we are ourselves."""
    overruling = {f"SBATCH_{option.upper().replace('-', '_')}" for option in asked} | {
        "SBATCH_TIMELIMIT",
        "SBATCH_NO_REQUEUE",
    }
    inside = "SLURM_JOB_ID" in os.environ
    return {
        name: value
        for name, value in os.environ.items()
        if name not in overruling and not (inside and re.match(r"SLURM(D|_(?!CONF))", name))
    }


def _option(line: str) -> tuple[str, str]:
    name, _, value = line.removeprefix(_ASKED).partition("=")
    return name.strip(), value.strip().strip("'")


def _reason(stderr: str) -> str:
    """What a command of SLURM complains of, without its own name before each line."""
    lines = [re.sub(r"^\w+: (error: )?", "", line.strip()) for line in stderr.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line)) or "it gives no reason"


def _refusal(reason: str, asked: Mapping[str, str]) -> str:
    groups = [options for words, options in _ABOUT.items() if re.search(words, reason, re.IGNORECASE)]
    given = [option for options in groups for option in options if option in asked]
    said = [_said(option, asked[option]) for option in dict.fromkeys(given)]
    said += [f"{_SETTINGS[only]}, which is not given" for only, *more in groups if not more and only not in asked]
    hint = ", ".join(said) or "cluster.slurm.options, which sbatch gets as they are"
    return f"sbatch refuses {asked.get('job-name', 'the job')}: {reason}; look at {hint}"


def _said(option: str, value: str) -> str:
    """The setting with its value, or with what sbatch was told instead."""
    setting = _SETTINGS[option]
    same = setting.rpartition(".")[2] == option.replace("-", "_")
    return f"{setting}={value}" if same else f"{setting} (--{option}={value})"
