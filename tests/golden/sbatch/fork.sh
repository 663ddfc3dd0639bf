#!/bin/bash
#SBATCH --job-name=continual-0123456789ab
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --output=/shared/runs/tinyllama_v1.1/continual-0123456789ab/logs/%j.txt
#SBATCH --chdir=/shared/project
#SBATCH --dependency=afterok:41
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --export=ALL

run=/shared/runs/tinyllama_v1.1/continual-0123456789ab
life=$(( ${SLURM_RESTART_COUNT:-0} + 1 ))
say() { echo "$(date +%FT%T) life $life: $*"; }

latest() { cat "$run"/LATEST 2> /dev/null; }
before=$(latest)
# A line for each life in a row that brought no new checkpoint.
fruitless="$run"/job/fruitless

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

# again CODE WHY: queue this job once more, or end with CODE.
again() {
  if [ "$(latest)" != "$before" ]; then rm -f "$fruitless"; else echo "$life $2" >> "$fruitless"; fi
  local count=0
  [ -e "$fruitless" ] && count=$(wc -l < "$fruitless")
  if (( count >= 3 )); then
    say "$2; no new checkpoint in $count lives in a row (cluster.slurm.max_failures=3): given up"
    rm -f "$fruitless"
  elif (( life > 1000 )); then
    say "$2; it was queued again $(( life - 1 )) times (cluster.slurm.max_requeues=1000): given up"
  else
    say "$2; queued again"
    trap '' TERM  # with which SLURM begins to do so
    scontrol requeue "$SLURM_JOB_ID" && exit 75
    say "SLURM does not queue it again: given up"
  fi
  exit "$1"
}

# What SLURM says of this job, while it still means it to run: nothing once somebody ends it.
running() { scontrol --oneliner show job "$SLURM_JOB_ID" | grep "^JobId=$SLURM_JOB_ID .*JobState=RUNNING "; }

# A job that SLURM has forgotten counts as a success for those that wait for it.
if [ ! -e /shared/runs/tinyllama_v1.1/basic-0123456789ab/checkpoints/001200000000000 ]; then
  say 'the parent is not done: /shared/runs/tinyllama_v1.1/basic-0123456789ab/checkpoints/001200000000000 does not exist'
  exit 2
fi

# Safe: else the working directory, perhaps a checkout, would come before the copy of the code.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$(( 20000 + SLURM_JOB_ID % 10000 ))
PYTHONPATH=/shared/runs/tinyllama_v1.1/.code/ba9876543210:/shared/runs/tinyllama_v1.1/.code/ba9876543210/launchers${PYTHONPATH:+:$PYTHONPATH}
PYTHONSAFEPATH=1
export MASTER_ADDR MASTER_PORT PYTHONPATH PYTHONSAFEPATH

say "on $SLURM_JOB_NODELIST, from ${before:-the beginning}"
rm -f "$run"/job/END
code=0
if [ -z "$asked" ]; then
  srun --kill-on-bad-exit=1 \
    --wait=600 \
    --output=/shared/runs/tinyllama_v1.1/continual-0123456789ab/logs/%j.%t.txt \
    --open-mode=append \
    /shared/project/.venv/bin/python -u -m hydra_plugins.tinyllama_launchers.job /shared/runs/tinyllama_v1.1/continual-0123456789ab/job &
  ranks=$!
  [ -z "$asked" ] || remind &
  # A signal ends the waiting, and not srun.
  while wait "$ranks"; code=$?; kill -0 "$ranks" 2> /dev/null; do :; done
fi
end=$(cat "$run"/job/END 2> /dev/null)

if [ -e "$run"/DONE ]; then
  say "done"
  exit 0
fi
case $end in
  2 | 3) say "ended with exit code $end; the last lines of the ranks tell why"; exit "$end" ;;
esac
if [ "$asked" = TERM ] || [ "$end" = left ]; then
  # With TERM SLURM also warns of a preemption, where the partition has a GraceTime; who ends then is not requeued.
  if running | grep -q 'PreemptTime=[0-9]'; then again 1 "preempted"; fi
  if [ "$asked" != TERM ] && running > /dev/null; then again 1 "a rank was ended by TERM, and the job by nobody"; fi
  say "asked to end; the same command goes on from the last checkpoint"
  exit 75
fi
if [ "$asked" = USR1 ]; then again 1 "the time limit is near"; fi
if [ "$end" = requeue ]; then again 1 "asked by USR1 to stop"; fi
case $code in
  138) again 1 "asked by USR1 to stop before it trained" ;; # by a signal that met Python while it started
  143) if ! running > /dev/null; then say "asked to end before it trained"; exit 75; fi ;;
  0) code=1 ;;
esac
again "$code" "ended with exit code $code"
