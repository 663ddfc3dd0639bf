"""What a job that trains a node does, as text for sbatch. Pure: the same settings and job give the same text."""

from dataclasses import dataclass
from pathlib import Path

from tinyllama.checkpoint.layout import RunFolder
from tinyllama.config.checks import processes_per_node
from tinyllama.config.schema import ClusterConfig, SlurmConfig
from tinyllama.errors import ConfigError, DamageError, Stopped
from tinyllama.slurm.sbatch import RUNNING, contained, header, quoted, said, surroundings

MODULE = "hydra_plugins.tinyllama_launchers.job"

REQUEUE, LEFT = "requeue", "left"
"""What ranks that were asked to stop write into the job's END: that they want to go on in another life, or not."""

_ADDRESS = {
    "MASTER_ADDR": '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
    "MASTER_PORT": "$(( 20000 + SLURM_JOB_ID % 10000 ))",
}
"""Where the ranks meet."""

_DELIVERY_SECONDS = 600
"""How long ranks may wait for the one that still talks to the tracking store."""


@dataclass(frozen=True)
class JobSpec:
    """A job that trains a run. All paths are absolute."""

    name: str
    run: Path
    code: Path
    """The copy of the code that it runs."""
    directory: Path
    """Where it works: relative paths of the configuration begin there."""
    python: str
    paths: tuple[Path, ...] = ()
    """What a container must see besides the directory, the run and the code."""
    needs: Path | None = None
    """What must stand on disk before it trains: the end of its parent, or the checkpoint it forks from."""
    depends_on: str | None = None
    """The job whose success it waits for."""


def run_script(cluster: ClusterConfig, job: JobSpec) -> str:
    """The whole text.

    The script decides by marks on disk and not by exit codes: a rank that saves must not be ended because its peer has
    left already. DONE alone satisfies the jobs that wait for this one.
    """
    folder, slurm = RunFolder(job.run), cluster.slurm
    lines = header(
        slurm,
        {
            "job-name": job.name,
            "nodes": cluster.nodes,
            "ntasks-per-node": processes_per_node(cluster),
            "gpus-per-node": _gpus(cluster),
            "cpus-per-task": slurm.cpus_per_rank,
            "output": folder.logs / "%j.txt",
            "chdir": job.directory,
            "dependency": f"afterok:{job.depends_on}" if job.depends_on else None,
            "kill-on-invalid-dep": "yes" if job.depends_on else None,
        },
    )
    parts = [
        f"#!/bin/bash\n{lines}",
        _LIFE.format(run=quoted(job.run), latest=_within(job, folder.latest), fruitless=_within(job, folder.fruitless)),
        _LISTEN,
        _again(slurm),
        RUNNING,
        *([_needs(job.needs)] if job.needs else []),
        surroundings(slurm, job.code, _ADDRESS),
        _ranks(cluster, job),
        _verdict(job),
    ]
    return "\n".join(parts)


def _gpus(cluster: ClusterConfig) -> int | None:
    """Per node: as many as are asked for; else one per rank, where the cluster has any."""
    asked = cluster.slurm.gpus_per_node
    if asked is None:
        asked = processes_per_node(cluster) if cluster.gpu is not None else 0
    return asked or None


def _within(job: JobSpec, path: Path) -> str:
    """A path of the run, as the script says it."""
    return f'"$run"/{path.relative_to(job.run)}'


# ---------------------------------------------------------------- the parts of the text

_LIFE = """\
run={run}
life=$(( ${{SLURM_RESTART_COUNT:-0}} + 1 ))
say() {{ echo "$(date +%FT%T) life $life: $*"; }}

latest() {{ cat {latest} 2> /dev/null; }}
before=$(latest)
# A line for each life in a row that brought no new checkpoint.
fruitless={fruitless}
"""

_LISTEN = """\
# The time limit comes near (USR1), or somebody wants the job to end (TERM), which counts more.
asked=
ranks=
hear() {
  [ "$asked" = TERM ] || asked=$1
  [ -z "$ranks" ] || remind &
}
# srun loses a signal that comes while it starts the ranks, and answers TERM by killing them.
remind() { while kill -s USR1 "$ranks" 2> /dev/null; do sleep 3; done; }
trap 'hear USR1' USR1
trap 'hear TERM' TERM
"""


def _again(slurm: SlurmConfig) -> str:
    """The function that ends this life; another follows unless too many brought no new checkpoint."""
    return f"""\
# again CODE WHY: queue this job once more, or end with CODE.
again() {{
  if [ "$(latest)" != "$before" ]; then rm -f "$fruitless"; else echo "$life $2" >> "$fruitless"; fi
  local count=0
  [ -e "$fruitless" ] && count=$(wc -l < "$fruitless")
  if (( count >= {slurm.max_failures} )); then
    say "$2; no new checkpoint in $count lives in a row (cluster.slurm.max_failures={slurm.max_failures}): given up"
    rm -f "$fruitless"
  elif (( life > {slurm.max_requeues} )); then
    say "$2; it was queued again $(( life - 1 )) times (cluster.slurm.max_requeues={slurm.max_requeues}): given up"
  else
    say "$2; queued again"
    trap '' TERM  # with which SLURM begins to do so
    scontrol requeue "$SLURM_JOB_ID" && exit {Stopped.exit_code}
    say "SLURM does not queue it again: given up"
  fi
  exit "$1"
}}
"""


def _needs(needs: Path) -> str:
    return f"""\
# A job that SLURM has forgotten counts as a success for those that wait for it.
if [ ! -e {quoted(needs)} ]; then
  say {quoted(f"the parent is not done: {needs} does not exist")}
  exit {ConfigError.exit_code}
fi
"""


def _ranks(cluster: ClusterConfig, job: JobSpec) -> str:
    end = _within(job, RunFolder(job.run).job_end)
    srun = " \\\n    ".join(_srun(cluster, job))
    return f"""\
say "on $SLURM_JOB_NODELIST, from ${{before:-the beginning}}"
rm -f {end}
code=0
if [ -z "$asked" ]; then
  srun {srun} &
  ranks=$!
  [ -z "$asked" ] || remind &
  # A signal ends the waiting, and not srun.
  while wait "$ranks"; code=$?; kill -0 "$ranks" 2> /dev/null; do :; done
fi
end=$(cat {end} 2> /dev/null)
"""


def _verdict(job: JobSpec) -> str:
    stopped, mistake, damage = Stopped.exit_code, ConfigError.exit_code, DamageError.exit_code
    return f"""\
if [ -e {_within(job, RunFolder(job.run).done)} ]; then
  say "done"
  exit 0
fi
case $end in
  {mistake} | {damage}) say "ended with exit code $end; the last lines of the ranks tell why"; exit "$end" ;;
esac
if [ "$asked" = TERM ] || [ "$end" = {LEFT} ]; then
  # With TERM SLURM also warns of a preemption, where the partition has a GraceTime; who ends then is not requeued.
  if running | grep -q 'PreemptTime=[0-9]'; then again 1 "preempted"; fi
  if [ "$asked" != TERM ] && running > /dev/null; then again 1 "a rank was ended by TERM, and the job by nobody"; fi
  say "asked to end; the same command goes on from the last checkpoint"
  exit {stopped}
fi
if [ "$asked" = USR1 ]; then again 1 "the time limit is near"; fi
if [ "$end" = {REQUEUE} ]; then again 1 "asked by USR1 to stop"; fi
case $code in
  138) again 1 "asked by USR1 to stop before it trained" ;; # by a signal that met Python while it started
  143) if ! running > /dev/null; then say "asked to end before it trained"; exit {stopped}; fi ;;
  0) code=1 ;;
esac
again "$code" "ended with exit code $code"
"""


def _srun(cluster: ClusterConfig, job: JobSpec) -> list[str]:
    """The words after srun, quoted."""
    slurm, folder = cluster.slurm, RunFolder(job.run)
    options = {
        "kill-on-bad-exit": 1,
        "wait": _DELIVERY_SECONDS,
        "cpus-per-task": slurm.cpus_per_rank,  # srun does not take it over from the job
        "output": folder.logs / "%j.%t.txt",
        "open-mode": "append",
        **slurm.srun_options,
    }
    command = [quoted(job.python), "-u", "-m", MODULE, quoted(folder.job)]
    mounts = [job.directory, job.code, job.run.parent, *job.paths]
    gpus = _gpus(cluster) is not None
    return [*said(options), *contained(slurm.container, mounts, job.directory, gpus=gpus), " ".join(command)]
