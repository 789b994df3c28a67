#!/usr/bin/env bash
# Trains on Cloud TPU: asks for the machines (a queued resource), waits for them, installs this checkout on every host,
# runs training on all of them, shows and keeps every host's log, starts again after a preemption, and deletes the
# machines at the end. docs/pods.md has what one must have before, and what it costs.
#
#   PROJECT=my-project ZONE=us-east5-a ACCELERATOR_TYPE=v5p-64 WORKDIR=gs://my-bucket/run1 \
#     bash launch/run_tpu.sh --config.data.path=gs://my-bucket/packed
#   DRY_RUN=1 ... bash launch/run_tpu.sh       prints every command and does nothing
#
# Arguments go to training; gs://BUCKET/... in them becomes the path where the hosts mount that bucket.
#
#   PROJECT, ZONE        of Google Cloud
#   ACCELERATOR_TYPE     v5p-64, v6e-64, v5litepod-256, ... (of one slice)
#   WORKDIR              gs://BUCKET/FOLDER: checkpoints, metrics and logs; the same one resumes. Never deleted.
#   CONFIG               default configs/pretrain_7b.py
#   NODE_COUNT           slices (default 1)
#   NAME                 of the queued resource (default ar-omni-$USER); an existing one is used again
#   RUNTIME_VERSION      of the hosts' image (default: what fits ACCELERATOR_TYPE)
#   PRICE                on-demand (default), spot (cheaper, may be preempted) or reserved
#   VALID_UNTIL          give the request up when not served in this time, such as 6h (default: wait for ever)
#   CREATE_FLAGS         more flags for `gcloud compute tpus queued-resources create`
#   BRANCH, REPOSITORY   hosts clone this branch (REPOSITORY: default the remote origin) instead of getting this checkout
#   KEEP=1               delete nothing at the end; Ctrl-C then leaves training running, the same command looks again
#   LOGS                 folder on this machine with a log for each host (default runs/tpu/NAME)
#   MAX_RESTARTS         of training after a crash (default 10); preemptions do not count
#   SSH_RETRIES          rounds in which hosts that do not answer are asked again (default 5)
#   POLL, STOP_SECONDS   seconds between looks at the resource (30), and for saving after Ctrl-C (300)
#
# Ctrl-C saves on all hosts, then deletes; a second one deletes at once. Exit code: 0 training finished, 1 and 2 as
# `python -m ar_omni_jax.main` says, 130 after Ctrl-C, 3 when the machines could not be had or be used.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '[%s] %s\n' "$(date +%H:%M:%S)" "$*" >&2; }
fail() { # CODE WORDS
  say "error: $2"
  exit "$1"
}

# ------------------------------------------------------------------------------------------------ settings
missing=()
for name in PROJECT ZONE ACCELERATOR_TYPE WORKDIR; do
  if [ -z "${!name:-}" ]; then missing+=("$name"); fi
done
if [ "${#missing[@]}" -gt 0 ]; then fail 2 "set ${missing[*]}; the head of launch/run_tpu.sh says what they are"; fi
CONFIG=${CONFIG:-configs/pretrain_7b.py}
NODE_COUNT=${NODE_COUNT:-1}
NAME=${NAME:-ar-omni-${USER:-user}}
PRICE=${PRICE:-on-demand}
BRANCH=${BRANCH:-}
LOGS=${LOGS:-runs/tpu/$NAME}
MAX_RESTARTS=${MAX_RESTARTS:-10}
SSH_RETRIES=${SSH_RETRIES:-5}
POLL=${POLL:-30}
STOP_SECONDS=${STOP_SECONDS:-300}
KEEP=${KEEP:-}
DRY_RUN=${DRY_RUN:-}
read -ra more_flags <<<"${CREATE_FLAGS:-}"

case $ACCELERATOR_TYPE in
  v5p-*) image=v2-alpha-tpuv5 ;;
  v5litepod-*) image=v2-alpha-tpuv5-lite ;;
  v6e-*) image=v2-alpha-tpuv6e ;;
  v2-* | v3-* | v4-*) image=tpu-ubuntu2204-base ;;
  v5e-*) fail 2 "ACCELERATOR_TYPE=$ACCELERATOR_TYPE: the cloud calls it v5litepod-${ACCELERATOR_TYPE#v5e-}" ;;
  *) image= ;;
esac
image=${RUNTIME_VERSION:-$image}
[ -n "$image" ] || fail 2 "ACCELERATOR_TYPE=$ACCELERATOR_TYPE: no image is known for it; set RUNTIME_VERSION"
case $PRICE in
  on-demand) price=() ;;
  spot | reserved) price=("--$PRICE") ;;
  *) fail 2 "PRICE=$PRICE must be on-demand, spot or reserved" ;;
esac
case $WORKDIR in
  gs://?*/?*) ;;
  *) fail 2 "WORKDIR=$WORKDIR must be gs://BUCKET/FOLDER: the disks of the hosts go with them" ;;
esac
must_be() { [[ ${!1} =~ ^($2)$ ]] || fail 2 "$1=${!1} must be $3"; } # told before machines are there that cost money
for name in NODE_COUNT SSH_RETRIES STOP_SECONDS; do must_be "$name" '[1-9][0-9]*' "a number of at least 1"; done
must_be MAX_RESTARTS '0|[1-9][0-9]*' "a number, 0 for none"
must_be POLL '[0-9]*[.]?[0-9]+' "seconds"
must_be NAME '[a-z][-a-z0-9]*[a-z0-9]' "lower-case letters, digits and hyphens, a letter first"
if [ ! -f "${CONFIG%%:*}" ]; then fail 2 "CONFIG=$CONFIG is no file of this checkout"; fi
command -v gcloud >/dev/null || [ -n "$DRY_RUN" ] ||
  fail 2 "gcloud is missing: https://cloud.google.com/sdk/docs/install, then gcloud auth login"

if [ "$NODE_COUNT" = 1 ]; then
  nodes=("$NAME") ids=("--node-id=$NAME")
else
  nodes=() ids=("--node-count=$NODE_COUNT" "--node-prefix=$NAME")
  for ((i = 0; i < NODE_COUNT; i++)); do nodes+=("$NAME-$i"); done
fi
place=("--project=$PROJECT" "--zone=$ZONE")
# Without --batch-size=all gcloud serves 64 hosts after the other 64, who wait for the former in vain.
everywhere=("${place[@]}" --quiet --node=all --worker=all --batch-size=all)
resource=(gcloud compute tpus queued-resources)
buckets=("$WORKDIR")
for word in "$@"; do case $word in *gs://*) buckets+=("$word") ;; esac done

shown() { # runs a command, or prints it in a dry run
  if [ -n "$DRY_RUN" ]; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}
quoted() { printf '%q ' "$@"; }
ask_hosts() { # sets `command`: one command line for tpu_worker.sh on every host
  command=("${resource[@]}" ssh "$NAME" "${everywhere[@]}" --ssh-flag=-oServerAliveInterval=30
    --ssh-flag=-oServerAliveCountMax=4 --command="bash ./tpu_worker.sh $(quoted "$@")")
}
on_hosts() {
  ask_hosts "$@"
  shown "${command[@]}"
}
on_hosts_aside() { # sets `aside`, its process group: Ctrl-C in the terminal does not reach it
  ask_hosts "$@"
  set -m
  "${command[@]}" </dev/null > >(split_log) 2>&1 &
  aside=$!
  set +m
}

# -------------------------------------------------------------------------------------- the queued resource
ours='' asked='' # whether this script made the resource; whether it must be there
training='' aside='' # process groups: the connections that follow training, and the last ones aside
state() { # ACTIVE, ..., NONE when there is no such resource, UNKNOWN when the cloud did not answer
  local answer
  if answer=$("${resource[@]}" describe "$NAME" "${place[@]}" --format='value(state.state)' 2>"$scratch/error"); then
    echo "${answer:-UNKNOWN}"
  elif grep -qiE 'not.?found' "$scratch/error"; then
    echo NONE
  else
    echo UNKNOWN
  fi
}

create() {
  say "asking for $NODE_COUNT x $ACCELERATOR_TYPE ($PRICE, $image) in $ZONE as $NAME"
  ours=1 asked=1 # before the call: it may be cut short after the cloud has heard it
  shown "${resource[@]}" create "$NAME" "${place[@]}" "${ids[@]}" --accelerator-type="$ACCELERATOR_TYPE" \
    --runtime-version="$image" --labels=ar_omni_jax=run ${price[@]+"${price[@]}"} \
    ${VALID_UNTIL:+--valid-until-duration="$VALID_UNTIL"} ${more_flags[@]+"${more_flags[@]}"} ||
    fail 3 "the request was refused (see above). A quota? https://console.cloud.google.com/iam-admin/quotas?project=$PROJECT"
}

delete() {
  local try
  asked=''
  for try in 1 2 3; do
    if shown "${resource[@]}" delete "$NAME" "${place[@]}" --force --quiet; then return; fi
    if [ "$(state)" = NONE ]; then return; fi
    say "deleting $NAME failed ($try of 3)"
    sleep "$POLL"
  done
  say "error: $NAME MAY STILL COST MONEY. Delete it: $(quoted "${resource[@]}" delete "$NAME" "${place[@]}" --force)"
  return 1
}

pause() { # seconds; a signal ends it at once
  sleep "$1" &
  wait $! || true
}

acquire() { # returns when the resource is ACTIVE
  local now before='' since=$SECONDS told=$SECONDS unknown=0
  if [ -n "$DRY_RUN" ]; then
    create
    shown "${resource[@]}" describe "$NAME" "${place[@]}" --format='value(state.state)'
    return
  fi
  while true; do
    now=$(state)
    if [ "$now" != UNKNOWN ]; then unknown=0; fi
    if [ "$now" != "$before" ] || [ $((SECONDS - told)) -ge 300 ]; then
      say "$NAME: $now ($(((SECONDS - since) / 60)) min)"
      told=$SECONDS
    fi
    case $now in
      ACTIVE)
        asked=1
        return
        ;;
      NONE)
        [ -z "$asked" ] || fail 3 "$NAME was deleted by somebody; it is not asked for again"
        create
        ;;
      SUSPENDED) # preempted: such a request is never served again
        adopt
        [ -n "$ours" ] || fail 3 "$NAME is suspended and was not made by this script; delete it or set another NAME"
        say "$NAME was preempted: deleting it and asking again"
        delete || exit 3
        ;;
      FAILED)
        adopt
        "${resource[@]}" describe "$NAME" "${place[@]}" --format='yaml(state)' >&2 || true
        fail 3 "the cloud gave $NAME up; the reason stands above"
        ;;
      UNKNOWN)
        unknown=$((unknown + 1))
        if [ "$unknown" -ge "$SSH_RETRIES" ]; then
          "${resource[@]}" describe "$NAME" "${place[@]}" >&2 || true
          fail 3 "the cloud does not say how $NAME is; its answer stands above"
        fi
        pause "$POLL"
        ;;
      *) pause "$POLL" ;;
    esac
    before=$now
  done
}

adopt() { # what an earlier call of this script made is this call's to delete
  local label
  label=$("${resource[@]}" describe "$NAME" "${place[@]}" --format='value(tpu.nodeSpec[0].node.labels.ar_omni_jax)' 2>/dev/null || true)
  if [ "$label" = run ]; then ours=1; fi
}

# ---------------------------------------------------------------------------------------------- the hosts
hosts_of() { # NODE: how many; nothing when the cloud does not say
  local try found
  for ((try = 1; try <= SSH_RETRIES; try++)); do
    found=$(shown gcloud compute tpus tpu-vm describe "$1" "${place[@]}" --format='value(networkEndpoints.len())' || true)
    if [ -n "$DRY_RUN" ]; then
      echo "$found" >&2
      found=1
    fi
    if [ "$found" -ge 1 ] 2>/dev/null; then
      echo "$found"
      return
    fi
    sleep "$POLL"
  done
}
count_hosts() { # of all slices; fails when one is not known: who counts too few takes a part of them for all
  local node total=0 found
  for node in "${nodes[@]}"; do
    found=$(hosts_of "$node")
    if [ -z "$found" ]; then return 1; fi
    total=$((total + found))
  done
  echo "$total"
}

statuses() { on_hosts status 2>/dev/null | grep -oE 'status [^ ]+ (running|idle|ended [0-9]+)' | sort -u || true; }

install() {
  local source=tar files=(launch/tpu_worker.sh)
  if [ -n "$BRANCH" ]; then
    source=${REPOSITORY:-$(git remote get-url origin)}#$BRANCH
  else
    files+=("$scratch/ar_omni_jax.tgz")
  fi
  shown "${resource[@]}" scp "${files[@]}" "$NAME:" "${everywhere[@]}" || return 1
  on_hosts setup "$source" "${buckets[@]}"
}

pack() { # the tracked files as they are now
  if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    git ls-files -z | while IFS= read -r -d '' f; do if [ -e "$f" ]; then printf '%s\0' "$f"; fi; done
  else
    find ar_omni_jax data_pipelines configs launch setup.py README.md -type f -not -name '*.pyc' -print0
  fi | tar --null -czf "$scratch/ar_omni_jax.tgz" -T -
}

split_log() { # shows the hosts' lines and keeps them, one file for each host
  mkdir -p "$LOGS"
  awk -v folder="$LOGS" '{ print; fflush() }
    match($0, /^\[[A-Za-z0-9._-]+\] /) { f = folder "/" substr($0, 2, RLENGTH - 3) ".log"; print substr($0, RLENGTH + 1) >>f; fflush(f); next }
    { f = folder "/gcloud.log"; print >>f; fflush(f) }'
}

follow() { # runs or joins training on all hosts until it ends or the machines go
  if [ -n "$DRY_RUN" ]; then
    on_hosts train "$attempt" "$WORKDIR" --config="$CONFIG" "$@"
    return
  fi
  on_hosts_aside train "$attempt" "$WORKDIR" --config="$CONFIG" "$@"
  training=$aside
  while kill -0 "$training" 2>/dev/null; do
    pause "$POLL"
    case $(state) in
      NONE | SUSPEND* | DELETING | FAILED) kill -- "-$training" 2>/dev/null || true ;; # its connections may hang
    esac
  done
  wait "$training" 2>/dev/null || true
  training=''
}

outcome() { # finished | preempted | running | crashed | silent | a code of training that a restart would not mend
  local try found codes
  for ((try = 1; try <= SSH_RETRIES; try++)); do
    case $(state) in
      NONE | SUSPEND* | DELETING | FAILED)
        echo preempted
        return
        ;;
    esac
    found=$(statuses)
    if [ "$(grep -c . <<<"$found")" -ge "$hosts" ]; then
      codes=$(sed -n 's/.*ended //p' <<<"$found" | sort -nu)
      if grep -q running <<<"$found"; then
        echo running
      elif grep -qx '[12]' <<<"$codes"; then
        grep -x '[12]' <<<"$codes" | head -1
      elif [ "$codes" = 0 ]; then
        echo finished
      else
        echo crashed
      fi
      return
    fi
    say "only $(grep -c . <<<"$found") of $hosts hosts answer ($try of $SSH_RETRIES)"
    sleep "$POLL"
  done
  echo silent
}

# ------------------------------------------------------------------------------------------ ending, restarting
clean_up() {
  local code=$? job
  trap '' INT TERM
  for job in $training $aside; do kill -- "-$job" 2>/dev/null || true; done # the connections, not what runs there
  if [ -z "$ours" ]; then
    : # nothing to delete
  elif [ -n "$KEEP" ]; then
    say "$NAME is kept and costs money. Look again: the same command. Delete it: $(quoted "${resource[@]}" delete "$NAME" "${place[@]}" --force)"
  elif [ -n "$DRY_RUN" ] || [ "$(state)" != NONE ]; then
    say "deleting $NAME; $WORKDIR and $LOGS stay"
    delete || true
  fi
  rm -rf "$scratch"
  exit "$code"
}

interrupted() {
  trap 'exit 130' INT TERM
  if [ -n "$KEEP" ] || [ -z "$training" ]; then exit 130; fi
  say "training is asked to save on all hosts (at most $STOP_SECONDS s; Ctrl-C again: delete at once)"
  on_hosts_aside stop "$STOP_SECONDS"
  wait "$aside" || true
  exit 130
}

scratch=$(mktemp -d)
trap clean_up EXIT
trap interrupted INT TERM
if [ -z "$BRANCH" ]; then pack; fi
restarts=0
while true; do
  acquire
  if [ -z "$DRY_RUN" ]; then adopt; fi
  if ! hosts=$(count_hosts); then
    case $(state) in
      NONE | SUSPEND* | DELETING | FAILED) continue ;;
    esac
    fail 3 "the cloud does not say how many hosts $NAME has; its answer stands above"
  fi
  attempt=$(date +%Y%m%d-%H%M%S)
  if [ -n "$DRY_RUN" ] || ! statuses | grep -q running; then
    for ((try = 1; ; try++)); do
      if install; then break; fi
      if [ "$(state)" = SUSPENDED ]; then continue 2; fi
      [ "$try" -lt "$SSH_RETRIES" ] || fail 3 "installing on the hosts of $NAME failed $try times"
      say "installing failed on some host ($try of $SSH_RETRIES), again"
      pause "$POLL"
    done
  fi
  while true; do
    say "training on $hosts hosts; logs in $LOGS and $WORKDIR/logs"
    follow "$@"
    if [ -n "$DRY_RUN" ]; then
      on_hosts status
      exit 0
    fi
    result=$(outcome)
    case $result in
      finished)
        say "done: $WORKDIR"
        exit 0
        ;;
      running) say "the connection broke, training goes on: joining again" ;;
      preempted)
        say "$NAME is gone; training resumes from its last checkpoint"
        continue 2
        ;;
      silent) fail 3 "hosts of $NAME do not answer" ;;
      crashed)
        restarts=$((restarts + 1))
        [ "$restarts" -le "$MAX_RESTARTS" ] || fail 3 "training crashed $restarts times; logs in $LOGS and $WORKDIR/logs"
        say "training crashed; it resumes from its last checkpoint (restart $restarts of $MAX_RESTARTS)"
        on_hosts stop 30 >/dev/null 2>&1 || true
        attempt=$(date +%Y%m%d-%H%M%S)-$restarts
        ;;
      *) fail "$result" "training ended with code $result; logs in $LOGS and $WORKDIR/logs" ;;
    esac
  done
done
