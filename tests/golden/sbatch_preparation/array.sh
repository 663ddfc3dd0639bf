#!/bin/bash
#SBATCH --job-name=prepare-slimpajama
#SBATCH --array=0,1,3
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=32
#SBATCH --output=/shared/data/preparation/llama2-2048/slimpajama/logs/%A_%a.txt
#SBATCH --chdir=/shared/project
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --partition=cpu
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --export=ALL

life=$(( ${SLURM_RESTART_COUNT:-0} + 1 ))
failures=/shared/data/preparation/llama2-2048/slimpajama/logs/failures.$SLURM_JOB_ID  # a line for each; every task has an id of its own

say() { echo "$(date +%FT%T) life $life: $*"; }

# again CODE WHY: queue this job once more, or end with CODE.
again() {
  if (( life > 1000 )); then
    say "$2; it was queued again 1000 times (cluster.slurm.max_requeues): given up"
    exit "$1"
  fi
  say "$2; queued again"
  trap '' TERM  # with which SLURM begins to do so
  scontrol requeue "$SLURM_JOB_ID" && exit 75
  say "SLURM does not queue it again: given up"
  exit "$1"
}
trap 'again 1 "the time limit is near"' USR1

# What SLURM says of this job, while it still means it to run: nothing once somebody ends it.
running() { scontrol --oneliner show job "$SLURM_JOB_ID" | grep "^JobId=$SLURM_JOB_ID .*JobState=RUNNING "; }

say "on $SLURMD_NODENAME"
# Safe: else the working directory, perhaps a checkout, would come before the copy of the code.
PYTHONPATH=/shared/data/.code/ba9876543210:/shared/data/.code/ba9876543210/launchers${PYTHONPATH:+:$PYTHONPATH}
PYTHONSAFEPATH=1
export PYTHONPATH PYTHONSAFEPATH
srun --ntasks=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" \
    /shared/project/.venv/bin/python -u -m hydra_plugins.tinyllama_launchers.preparation /shared/data/preparation/llama2-2048/slimpajama/config.yaml slimpajama "$SLURM_ARRAY_TASK_ID" 4 &
wait $!
code=$?
case $code in
  0) say "done"; exit 0 ;;
  2 | 3) say "ended with exit code $code; its last lines tell why"; exit $code ;;
  143) if ! running > /dev/null; then say "asked to end; the same command goes on"; exit 75; fi ;;
esac
echo "$life $code" >> "$failures"
if (( $(wc -l < "$failures") >= 3 )); then
  say "ended with exit code $code, the last of 3 (cluster.slurm.max_failures): given up"
  exit $code
fi
again $code "ended with exit code $code"
