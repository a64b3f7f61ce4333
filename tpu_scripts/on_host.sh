#!/usr/bin/env bash
# Runs on the hosts of a slice; the other scripts call it there through ssh.
#
#   on_host.sh install PYTHON_VERSION EXTRA T5X          (T5X is 0 or 1)
#   on_host.sh data gs://BUCKET/FOLDER
#   on_host.sh model gs://BUCKET/FOLDER
#   on_host.sh start RUN [NAME=VALUE ...] -- train --gin_file FILE ...
#   on_host.sh stop RUN GRACE_SECONDS FORCE MARK      (FORCE and MARK are 0 or 1)
#   on_host.sh status RUN
#   on_host.sh logs RUN LINES FOLLOW                  (FOLLOW is 0 or 1)
#
# A run has a folder ~/m6rec-runs/RUN with
#   log         what it printed, of all its starts
#   pid         of the m6rec process; group: of the process group it is in
#   exit        its exit status, once it ended by itself
#   stopped     when a user stopped it
#   lock        held by the processes of the run as long as one of them lives. The kernel lets go
#               of it when they die, also by a reboot, so a stale pid file misleads nobody.
set -euo pipefail

CODE=$HOME/m6rec
ENVIRONMENT=$HOME/m6rec-env
DATA=$HOME/m6rec-data
MODEL=$HOME/m6rec-model
RUNS=$HOME/m6rec-runs
HOST=$(hostname)

fail() {
  echo "$HOST: $*" >&2
  exit 1
}

is_running() {
  [[ -e $RUNS/$1/lock ]] && ! flock --shared --nonblock "$RUNS/$1/lock" true
}

# One line that watch.sh reads.
report() {
  echo "m6rec-host $HOST $*"
}

refuse_while_running() {
  local run
  for run in "$RUNS"/*/; do
    run=$(basename "$run")
    if is_running "$run"; then
      fail "the run $run is going on; stop it first: launch.sh --run $run --stop"
    fi
  done
}

install() {
  local version=$1 extra=$2 t5x=$3
  refuse_while_running
  rm -rf "$CODE"
  mv "$HOME/m6rec.new" "$CODE"
  if [[ ! -x $ENVIRONMENT/bin/python ]] || ! is_version "$ENVIRONMENT/bin/python" "$version"; then
    rm -rf "$ENVIRONMENT"
    # Runtimes on Ubuntu 22.04 bring Python 3.10, which is too old, and no python3-venv.
    if ! { is_version "python$version" "$version" && "python$version" -m venv "$ENVIRONMENT"; } 2>/dev/null; then
      rm -rf "$ENVIRONMENT"
      # Later Ubuntus want to be told that this is meant; the pip of 22.04 does not know the option.
      python3 -m pip install --quiet --user uv ||
        python3 -m pip install --quiet --user --break-system-packages uv
      python3 -m uv venv --quiet --seed --python "$version" "$ENVIRONMENT"
    fi
  fi
  cd "$CODE"
  "$ENVIRONMENT/bin/python" -m pip install --quiet -c constraints.txt -e ".[$extra]" ||
    fail "pip could not install the package; what it says stands above"
  if ((t5x)); then
    "$ENVIRONMENT/bin/python" -m pip install --quiet --no-deps -r requirements-t5x.txt ||
      fail "pip could not install t5x; what it says stands above"
  fi
  report installed "$("$ENVIRONMENT/bin/m6rec" --version)"
}

is_version() {
  [[ $("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])') == "$2" ]]
}

data() {
  mkdir -p "$DATA"
  gcloud storage rsync --recursive "$1" "$DATA"
}

model() {
  refuse_while_running
  mkdir -p "$MODEL"
  # What the bucket no longer has would be served: a task that was taken out, a later step.
  gcloud storage rsync --recursive "$1" "$MODEL" --delete-unmatched-destination-objects
}

start() {
  local run=$1 folder=$RUNS/$1 environment=()
  shift
  while [[ $1 != -- ]]; do
    environment+=("$1")
    shift
  done
  shift
  [[ -x $ENVIRONMENT/bin/python ]] || fail "nothing is installed here; run install.sh"
  mkdir -p "$folder"
  exec 9>>"$folder/lock"
  # A status that is just looking holds the lock for a moment.
  flock --timeout 5 9 ||
    fail "the run $run is already going on (pid $(cat "$folder/pid" 2>/dev/null || echo unknown)); stop it with launch.sh --run $run --stop, or name another with --run"
  rm -f "$folder/exit" "$folder/stopped" "$folder/pid"
  # Detached, it outlives ssh. It inherits the lock, and so do its children.
  M6REC_DATA_DIR=$DATA nohup setsid env "${environment[@]}" \
    bash "${BASH_SOURCE[0]}" supervise "$run" "$@" </dev/null >>"$folder/log" 2>&1 &
  until [[ -s $folder/pid ]]; do
    kill -0 $! 2>/dev/null || [[ -s $folder/pid ]] || fail "the run $run did not start; see $folder/log"
    sleep 0.1
  done
  report started "$(cat "$folder/pid")"
}

supervise() {
  local folder=$RUNS/$1 status=0
  shift
  echo $$ >"$folder/group"
  cd "$CODE"
  printf '\n--- %s: m6rec' "$(date -u +%FT%TZ)"
  printf ' %q' "$@"
  printf '\n'
  # Named, the cluster must be there: a host that sees no TPU would otherwise train alone. A server is
  # alone.
  if [[ $1 != serve ]]; then set -- "$1" --gin.join_processes.cluster=tpu "${@:2}"; fi
  "$ENVIRONMENT/bin/m6rec" "$@" &
  echo $! >"$folder/pid.new"
  mv "$folder/pid.new" "$folder/pid"
  wait $! || status=$?
  echo "$status" >"$folder/exit"
  printf -- '--- %s: ended with status %d\n' "$(date -u +%FT%TZ)" "$status"
}

stop() {
  local run=$1 grace=$2 force=$3 mark=$4 folder=$RUNS/$1 pid waited=0
  if ! is_running "$run"; then
    # It may have ended since another host was told to stop, and with it this one; or watch.sh is
    # about to start it again.
    if ((mark)) && [[ -d $folder && $(cat "$folder/exit" 2>/dev/null) != 0 ]]; then
      touch "$folder/stopped"
    fi
    echo "$HOST: the run $run is not going on"
    return
  fi
  pid=$(cat "$folder/pid" 2>/dev/null) || fail "the run $run is just starting; try again"
  if ((mark)); then touch "$folder/stopped"; fi
  # At SIGTERM a run finishes its step, saves and leaves.
  kill -TERM "$pid" 2>/dev/null || true
  while is_running "$run" && ((waited < grace * 5)); do
    sleep 0.2
    waited=$((waited + 1))
  done
  if is_running "$run"; then
    ((force)) || fail "the run $run goes on $grace s after SIGTERM; wait, or add --force to kill it (it resumes from its last checkpoint)"
    # The process and whatever it started share the supervisor's group.
    kill -KILL -- "-$(cat "$folder/group")" || true
    report killed
  else
    report stopped
  fi
}

status() {
  local folder=$RUNS/$1 code
  if is_running "$1"; then
    report running "$(cat "$folder/pid" 2>/dev/null || true)"
  elif [[ -e $folder/stopped ]]; then
    report stopped
  elif [[ -s $folder/exit ]]; then
    code=$(cat "$folder/exit")
    if ((code)); then report failed "$code"; else report finished; fi
  elif [[ -e $folder/lock ]]; then
    report lost
  else
    report absent
  fi
}

logs() {
  local log=$RUNS/$1/log options=(-n "$2")
  [[ -e $log ]] || fail "there is no run $1 here; those that are: $(cd "$RUNS" 2>/dev/null && echo *)"
  if (($3)); then options+=(-F); fi
  # Lines of several hosts come mixed, so each says whose it is.
  tail "${options[@]}" "$log" | sed -u "s/^/[$HOST] /"
}

case ${1:-} in
  install | data | model | start | supervise | stop | status | logs) "$@" ;;
  *) fail "unknown command '${1:-}'; see the head of ${BASH_SOURCE[0]}" ;;
esac
