"""What the jobs that prepare a corpus do, as text for sbatch. Pure, like the text of the jobs that train."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from tinyllama.config.schema import ClusterConfig
from tinyllama.errors import ConfigError, DamageError, Stopped
from tinyllama.slurm.sbatch import RUNNING, contained, header, quoted, said, surroundings

MODULE = "hydra_plugins.tinyllama_launchers.preparation"


@dataclass(frozen=True)
class PreparationSpec:
    """An array of tasks that make parts of a corpus; without `indices` the one job that joins them.

    All paths are absolute.
    """

    corpus: str
    folder: Path
    """Of what concerns these jobs."""
    data: Path
    """Below it all is written."""
    code: Path
    """The copy of the code that they run."""
    directory: Path
    """Where they work: relative paths of the configuration begin there."""
    python: str
    indices: tuple[int, ...] = ()
    """Of the shares that have a part to make."""
    shares: int = 0
    """How many there are."""
    depends_on: str | None = None
    """The job whose success it waits for."""

    @property
    def name(self) -> str:
        return f"prepare-{self.corpus}" if self.indices else f"join-{self.corpus}"

    @property
    def log(self) -> Path:
        """As sbatch wants it."""
        return self.folder / "logs" / ("%A_%a.txt" if self.indices else "%j.txt")


def preparation_script(cluster: ClusterConfig, spec: PreparationSpec) -> str:
    """The whole text.

    A life that ends early costs the parts that it had begun; a new one goes on with those that are missing. Mistakes
    and damage would only be found again, and whoever ends the job does not want another life.
    """
    slurm = cluster.slurm
    lines = header(
        slurm,
        {
            "job-name": spec.name,
            "array": ",".join(map(str, spec.indices)) or None,
            "nodes": 1,
            "ntasks": 1,
            "cpus-per-task": slurm.cpus_per_rank,
            "output": spec.log,
            "chdir": spec.directory,
            "dependency": f"afterok:{spec.depends_on}" if spec.depends_on else None,
            "kill-on-invalid-dep": "yes" if spec.depends_on else None,
        },
    )
    stopped, mistake, damage = Stopped.exit_code, ConfigError.exit_code, DamageError.exit_code
    return f"""\
#!/bin/bash
{lines}
life=$(( ${{SLURM_RESTART_COUNT:-0}} + 1 ))
failures={quoted(spec.folder / "logs")}/failures.$SLURM_JOB_ID  # a line for each; every task has an id of its own

say() {{ echo "$(date +%FT%T) life $life: $*"; }}

# again CODE WHY: queue this job once more, or end with CODE.
again() {{
  if (( life > {slurm.max_requeues} )); then
    say "$2; it was queued again {slurm.max_requeues} times (cluster.slurm.max_requeues): given up"
    exit "$1"
  fi
  say "$2; queued again"
  trap '' TERM  # with which SLURM begins to do so
  scontrol requeue "$SLURM_JOB_ID" && exit {stopped}
  say "SLURM does not queue it again: given up"
  exit "$1"
}}
trap 'again 1 "the time limit is near"' USR1

{RUNNING}
say "on $SLURMD_NODENAME"
{surroundings(slurm, spec.code)}srun {_command(cluster, spec)} &
wait $!
code=$?
case $code in
  0) say "done"; exit 0 ;;
  {mistake} | {damage}) say "ended with exit code $code; its last lines tell why"; exit $code ;;
  143) if ! running > /dev/null; then say "asked to end; the same command goes on"; exit {stopped}; fi ;;
esac
echo "$life $code" >> "$failures"
if (( $(wc -l < "$failures") >= {slurm.max_failures} )); then
  say "ended with exit code $code, the last of {slurm.max_failures} (cluster.slurm.max_failures): given up"
  exit $code
fi
again $code "ended with exit code $code"
"""


def _command(cluster: ClusterConfig, spec: PreparationSpec) -> str:
    """What srun is told: one task with all CPUs of the job."""
    slurm = cluster.slurm
    words = [spec.python, "-u", "-m", MODULE, str(spec.folder / "config.yaml"), spec.corpus]
    command = [*said(slurm.srun_options), *contained(slurm.container, [spec.directory, spec.data], spec.directory)]
    share = f' "$SLURM_ARRAY_TASK_ID" {spec.shares}' if spec.indices else ""
    return f'--ntasks=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" \\\n    {" ".join([*command, shlex.join(words)])}{share}'
