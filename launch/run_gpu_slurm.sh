#!/usr/bin/env bash
# Trains on the GPUs of a SLURM cluster: one process a GPU (or a node), found by jax.distributed through SLURM's own
# variables; saves before the time limit and queues itself again until training is finished.
#
#   WORKDIR=/shared/runs/one NODES=2 bash launch/run_gpu_slurm.sh --config.data.path=/shared/packed
#   DRY_RUN=1 ... bash launch/run_gpu_slurm.sh     prints the commands and does nothing
#
# Called on a login node it submits itself. Arguments go to training. The checkout, VENV and WORKDIR must lie on a file
# system that all nodes share.
#
#   WORKDIR       checkpoints, metrics and logs; the same one resumes
#   CONFIG        default configs/pretrain_7b.py
#   NODES, GPUS   nodes (1) and GPUs of each (8)
#   PROCESSES     gpu (default): one process a GPU; node: one process a node, with all its GPUs
#   CPUS          cores of each process (default: the cluster's; reading data wants two or more)
#   HOURS         time limit of one turn in the queue (12); training goes on in the next turn
#   SAVE_SECONDS  how long before the limit training is told to save (300)
#   NAME          of the job (ar-omni)
#   SBATCH_FLAGS  more flags for sbatch, such as "--partition=gpu --account=me"
#   VENV          virtual environment (.venv in the checkout), made in the job when missing
#
# Queued again: when all processes saved on SIGTERM before the limit (exit code 143), and after a crash or a lost node
# if a newer checkpoint exists than at the start of the turn. Not queued again: when training is finished, when it
# reports an error (codes 1 and 2), after scancel, or after a crash that got nowhere.
set -euo pipefail
WORKDIR=${WORKDIR:-}
CONFIG=${CONFIG:-configs/pretrain_7b.py}
NODES=${NODES:-1}
GPUS=${GPUS:-8}
PROCESSES=${PROCESSES:-gpu}
HOURS=${HOURS:-12}
SAVE_SECONDS=${SAVE_SECONDS:-300}
NAME=${NAME:-ar-omni}
DRY_RUN=${DRY_RUN:-}
read -ra more_flags <<<"${SBATCH_FLAGS:-}"

fail() {
  echo "error: $1" >&2
  exit 2
}
for number in NODES GPUS HOURS SAVE_SECONDS ${CPUS:+CPUS}; do
  if ! [[ ${!number} =~ ^[1-9][0-9]*$ ]]; then fail "$number=${!number} must be a number of at least 1"; fi
done
if [ "$SAVE_SECONDS" -ge $((HOURS * 3600)) ]; then # told to save as it begins, it would be queued again for ever
  fail "SAVE_SECONDS=$SAVE_SECONDS is no less than the time limit, HOURS=$HOURS"
fi
case $PROCESSES in
  gpu) tasks=$GPUS ;;
  node) tasks=1 ;;
  *) fail "PROCESSES=$PROCESSES must be gpu or node" ;;
esac
case $WORKDIR in
  '') fail "set WORKDIR to a folder that all nodes share" ;;
  *://*) fail "WORKDIR=$WORKDIR must be a folder that all nodes share, no address" ;;
esac

shown() { # runs a command, or prints it in a dry run
  if [ -n "$DRY_RUN" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
on_login_node=''
if [ -z "${SLURM_JOB_ID:-}" ] || [ -n "$DRY_RUN" ]; then
  on_login_node=1
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  if [ ! -f "${CONFIG%%:*}" ]; then fail "CONFIG=$CONFIG is no file of this checkout"; fi
  case $WORKDIR in /*) ;; *) WORKDIR=$PWD/$WORKDIR ;; esac
fi
size=(--nodes="$NODES" --ntasks-per-node="$tasks" --gpus-per-node="$GPUS" ${CPUS:+--cpus-per-task="$CPUS"})
train=(srun "${size[@]}" --gpu-bind=none)
# A process that has saved must not take with it those that are saving, whatever the cluster's defaults are.
train+=(--kill-on-bad-exit=0 --wait=0 --label)
train+=(python -u -m ar_omni_jax.main --distributed --config="$CONFIG" --workdir="$WORKDIR")
train+=(--grace="$SAVE_SECONDS" "$@")

# ------------------------------------------------------------------------------------------------ on a login node
if [ -n "$on_login_node" ]; then
  export WORKDIR CONFIG NODES GPUS PROCESSES HOURS SAVE_SECONDS NAME CHECKOUT=$PWD # sbatch runs a copy of this file
  if [ -z "$DRY_RUN" ]; then
    command -v sbatch >/dev/null || fail "sbatch is missing: call this on a node of a SLURM cluster"
    mkdir -p "$WORKDIR"
  fi
  shown sbatch --job-name="$NAME" "${size[@]}" \
    --time="$HOURS:00:00" --signal="TERM@$SAVE_SECONDS" --requeue --open-mode=append --export=ALL \
    --output="$WORKDIR/slurm-%j.log" ${more_flags[@]+"${more_flags[@]}"} launch/run_gpu_slurm.sh "$@"
  if [ -n "$DRY_RUN" ]; then
    echo "# and in the job:"
    shown "${train[@]}"
  fi
  exit 0
fi

# ------------------------------------------------------------------------------------------------ in the job
newest() { # step of the newest checkpoint, or nothing
  find "$WORKDIR/checkpoints" -maxdepth 1 2>/dev/null | sed 's|.*/||' | grep -xE '[0-9]+' | sort -n | tail -1 || true
}
again() {
  echo "queued again: $1"
  scontrol requeue "$SLURM_JOB_ID"
}

cd "${CHECKOUT:-${SLURM_SUBMIT_DIR:-.}}"
. launch/environment.sh gpu
# SLURM tells the steps to save before the limit and leaves this shell alone; it signals this shell as well when the
# job is cancelled (it must not come back) or preempted (SLURM queues it again itself, because of --requeue).
told=0
trap 'told=$((told + 1))' TERM
if [ "$PROCESSES" = node ]; then # else JAX takes one GPU a process
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((GPUS - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi
before=$(newest)
echo "turn ${SLURM_RESTART_COUNT:-0} of job $SLURM_JOB_ID on ${SLURM_JOB_NODELIST:-?}; newest checkpoint: ${before:-none}"
"${train[@]}" &
srun=$!
while true; do # a signal ends the waiting, not srun
  seen=$told code=0
  wait "$srun" || code=$?
  if [ "$told" = "$seen" ]; then break; fi
done
after=$(newest)
echo "training ended with code $code; newest checkpoint: ${after:-none}"

if [ "$told" -gt 0 ]; then
  echo "not queued again by this script: the job was cancelled or preempted"
elif [ "$code" = 143 ]; then
  again "the time limit is near and training has saved"
elif [ "$code" -gt 2 ] && [ "$after" != "$before" ]; then
  again "training came from checkpoint ${before:-none} to $after before it ended with code $code"
elif [ "$code" -gt 2 ]; then
  echo "error: no newer checkpoint in this turn; look at $WORKDIR/slurm-$SLURM_JOB_ID.log" >&2
fi
exit "$code"
