#!/usr/bin/env bash
# What launch/run_tpu.sh asks of every TPU host over ssh. Each part may be asked again: gcloud repeats a command whose
# connection broke, and nothing may start twice.
#
#   tpu_worker.sh setup SOURCE GS...      unpacks (tar) or clones (URL#BRANCH), installs, mounts the buckets of gs:// paths
#   tpu_worker.sh train ATTEMPT WORKDIR ARGUMENT...
#                                         starts training unless ATTEMPT has started it, shows its log, ends with its code
#   tpu_worker.sh status                  one line: "status HOST running | ended CODE | idle"
#   tpu_worker.sh stop SECONDS            SIGTERM, so that training saves; waits for its end
#
# Training runs in a session of its own: a broken connection or a closed laptop does not touch it. Its log is copied to
# WORKDIR/logs once a minute, because the disks of a preempted TPU are gone.
#
# HOSTS_HOME  everything is kept here (default: the home folder)
set -euo pipefail
home=${HOSTS_HOME:-$HOME}
checkout=$home/ar_omni_jax
state=$home/ar_omni_jax.run # log, pid, code and attempt of the training
host=$(hostname)

local_path() { # gs://bucket/a as the path where the bucket is mounted; other words unchanged
  case $1 in
    gs://*) echo "$home/gs/${1#gs://}" ;;
    --*=gs://*) echo "${1%%=*}=$home/gs/${1#*=gs://}" ;;
    *) echo "$1" ;;
  esac
}

alive() { # after a restart of the host another process may have the number
  [ -s "$state/pid" ] && grep -qsa ar_omni_jax.main "/proc/$(cat "$state/pid")/cmdline"
}

fetch() {
  local source=$1
  rm -rf "$checkout.new"
  if [ "$source" = tar ]; then
    mkdir "$checkout.new"
    tar -xzf "$home/ar_omni_jax.tgz" -C "$checkout.new"
  else
    git clone --quiet --depth=1 --branch="${source##*#}" "${source%#*}" "$checkout.new"
  fi
  if [ -d "$checkout/.venv" ]; then mv "$checkout/.venv" "$checkout.new/"; fi # saves the download
  rm -rf "$checkout"
  mv "$checkout.new" "$checkout"
}

choose_python() { # the images' own Python is 3.10: uv brings a newer one without root
  local candidate
  for candidate in python3.12 python3.11 python3.13 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      PYTHON=$candidate
      return
    fi
  done
  python3 -m pip install --user --quiet uv
  python3 -m uv python install --quiet 3.12
  PYTHON=$(python3 -m uv python find 3.12)
}

install_gcsfuse() {
  local list=/etc/apt/sources.list.d/gcsfuse.list key=/usr/share/keyrings/cloud.google.asc
  curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee "$list" >/dev/null
  # A fresh machine updates itself and holds the package lock for some minutes.
  sudo apt-get -o DPkg::Lock::Timeout=600 -qq update
  sudo apt-get -o DPkg::Lock::Timeout=600 -qq install -y gcsfuse >/dev/null
}

mount_bucket() {
  local bucket=$1 folder=$home/gs/$1
  mkdir -p "$folder"
  if mountpoint -q "$folder"; then return; fi
  command -v gcsfuse >/dev/null || install_gcsfuse
  # Orbax finishes a checkpoint by renaming its folder, after the first host has found what the others have written.
  gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
    "$bucket" "$folder"
}

setup() {
  local source=$1 path
  shift
  if alive; then
    echo "$host: training runs here, nothing is installed"
    return
  fi
  fetch "$source"
  choose_python
  (export PYTHON VENV="$checkout/.venv" && cd "$checkout" && . launch/environment.sh tpu)
  for path in "$@"; do
    path=${path#*gs://}
    mount_bucket "${path%%/*}"
  done
  echo "$host: ready"
}

run_training() { # WORKDIR ARGUMENT...; the body of the session
  local workdir=$1 python copier code=0
  shift
  cd "$checkout"
  "${HOSTS_PYTHON:-$checkout/.venv/bin/python}" -u -m ar_omni_jax.main --distributed --workdir="$workdir" "$@" &
  python=$!
  echo "$python" >"$state/pid"
  while sleep 60 && kill -0 $$ 2>/dev/null; do keep_log "$workdir"; done & # until this session is lost
  copier=$!
  wait "$python" || code=$?
  kill "$copier" 2>/dev/null || true
  echo "$code" >"$state/code.new"
  mv "$state/code.new" "$state/code"
  keep_log "$workdir"
}

keep_log() { # a bucket that does not answer must not end training
  mkdir -p "$1/logs" || return 0
  cp "$state/log" "$1/logs/$(cat "$state/attempt")-$host.log" || true
}

await_code() { # the code is written a moment after training has ended
  local i
  for ((i = 0; i < 50; i++)); do
    if [ -e "$state/code" ]; then return; fi
    sleep 0.1
  done
}

train() {
  local attempt=$1 workdir words=() word session
  workdir=$(local_path "$2")
  shift 2
  for word in "$@"; do words+=("$(local_path "$word")"); done
  mkdir -p "$state"
  exec 9>"$state/lock"
  flock 9
  if ! alive && [ "$(cat "$state/attempt" 2>/dev/null)" != "$attempt" ]; then
    rm -rf "$state/code" "$state/pid" "$state/stopping"
    echo "$attempt" >"$state/attempt"
    : >"$state/log"
    setsid bash "$0" session "$workdir" "${words[@]}" </dev/null >>"$state/log" 2>&1 9>&- &
    session=$!
    while [ ! -s "$state/pid" ] && [ ! -e "$state/code" ] && kill -0 "$session" 2>/dev/null; do sleep 0.1; done
  fi
  flock -u 9
  if [ -s "$state/pid" ]; then
    tail -n +1 -F --pid="$(cat "$state/pid")" "$state/log" 2>/dev/null
  else # it ended before it began
    cat "$state/log"
  fi | sed -u "s/^/[$host] /" || true
  await_code
  exit "$(cat "$state/code" 2>/dev/null || echo 137)"
}

status() {
  if [ -e "$state/pid" ] && ! alive; then await_code; fi
  if alive; then
    echo "status $host running"
  elif [ -e "$state/code" ]; then
    echo "status $host ended $(cat "$state/code")"
  elif [ -e "$state/attempt" ]; then
    echo "status $host ended 137" # the session itself was killed, or the host restarted
  else
    echo "status $host idle"
  fi
}

stop() {
  local until=$((SECONDS + $1))
  # Once an attempt: a second signal would end training without saving.
  if alive && mkdir "$state/stopping" 2>/dev/null; then kill -TERM "$(cat "$state/pid")" || true; fi
  while alive && [ "$SECONDS" -lt "$until" ]; do sleep 0.5; done
  status
}

command=${1:?one of setup, train, status, stop}
shift
case $command in
  setup | train | status | stop) "$command" "$@" ;;
  session) run_training "$@" ;;
  *)
    echo "unknown command $command" >&2
    exit 2
    ;;
esac
