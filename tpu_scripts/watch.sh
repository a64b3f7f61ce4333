#!/usr/bin/env bash
# Keeps a run going: makes the slice again when it was taken away, and starts the run again.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

accelerator_type=${M6REC_TPU_ACCELERATOR_TYPE:-}
run_name=${M6REC_TPU_RUN:-m6rec}
max_retries=20
backoff=30
max_backoff=1800
healthy_after=3600
poll=60
unreachable_polls=5
create_options=()
install_options=()
launch_options=()
takes_arguments=1

usage() {
  cat <<TEXT
Usage: watch.sh --accelerator-type TYPE [options] -- [t5x.]train|eval|infer --gin_file FILE ...

Brings a run to its end. Makes the slice if there is none, installs, launches, and then looks at it
from time to time:
  slice taken away (preemption) or failed    deletes the request, asks again, installs, launches
  hosts rebooted (maintenance), run lost     installs, launches
  run failed on some host                    stops it on the others, installs, launches
Training resumes from its newest checkpoint. Leaves with status 0 when the run has finished on all
hosts or was stopped by launch.sh --stop, 2 when m6rec refuses its settings (no retry mends that),
1 when retries are used up. Ending watch.sh itself stops nothing; started again it goes on watching.
A run that finished is not started again: name another with --run.

  --max-retries N        in a row. Default: $max_retries
  --backoff SECONDS      before the first retry; doubles with each. Default: $backoff
  --max-backoff SECONDS  at most that long. Default: $max_backoff
  --healthy-after SECONDS  a run that held this long makes retries count from 0 again.
                         Default: $healthy_after
  --poll SECONDS         between two looks. Default: $poll
  --unreachable-polls N  looks in a row without an answer of the hosts, until the slice is made
                         again; twelve times as many where Google Cloud says that they are healthy,
                         since it may be this machine that does not reach them.
                         Default: $unreachable_polls

Handed on to create.sh: --accelerator-type, --runtime-version, --spot, --create-option; to
install.sh: --include, --python-version, --extra, --t5x; to launch.sh: --run, --data, --env. See there;
\$M6REC_TPU_ACCELERATOR_TYPE and \$M6REC_TPU_RUN hold here, too.
$(ssh_options)

$(slice_options)
TEXT
}

own_option() {
  case $1 in
    --max-retries) need_value "$@" && max_retries=$2 ;;
    --backoff) need_value "$@" && backoff=$2 ;;
    --max-backoff) need_value "$@" && max_backoff=$2 ;;
    --healthy-after) need_value "$@" && healthy_after=$2 ;;
    --poll) need_value "$@" && poll=$2 ;;
    --unreachable-polls) need_value "$@" && unreachable_polls=$2 ;;
    --accelerator-type) need_value "$@" && accelerator_type=$2 ;;
    --spot) create_options+=("$1") CONSUMED=1 ;;
    --t5x) install_options+=("$1") CONSUMED=1 ;;
    --runtime-version | --create-option)
      need_value "$@" && create_options+=("$1" "$2")
      ;;
    --include | --python-version | --extra)
      need_value "$@" && install_options+=("$1" "$2")
      ;;
    --run) need_value "$@" && run_name=$2 ;;
    --data | --env) need_value "$@" && launch_options+=("$1" "$2") ;;
    *) return 1 ;;
  esac
}

parse_options "$@"
check_slice
check_run_name "$run_name"
[[ -n $accelerator_type ]] ||
  fail 'no accelerator type: give --accelerator-type TYPE or set M6REC_TPU_ACCELERATOR_TYPE, for instance v5litepod-16'
for option in max_retries backoff max_backoff healthy_after poll unreachable_polls; do
  need_whole_number "--${option//_/-}" "${!option}"
done
((${#ARGUMENTS[@]})) || fail 'nothing to run: write -- train --gin_file FILE at the end'

slice=("--project=$project" "--zone=$zone" "--name=$name" "--node-count=$node_count")
if ((dry_run)); then slice+=(--dry-run); fi
through=()
for flag in "${ssh_flags[@]}"; do through+=(--ssh-option "$flag"); done

create() {
  "$HERE/create.sh" "${slice[@]}" --no-wait "--accelerator-type=$accelerator_type" "${create_options[@]}"
}

delete() {
  "$HERE/delete.sh" "${slice[@]}"
}

# Installs and starts; a run that hangs because one of its hosts is gone is ended first.
start() {
  # A bare host has nothing to stop and lacks the program that says so.
  on_slices all "[ ! -e m6rec/tpu_scripts/on_host.sh ] || $(on_host stop "$run_name" 60 1 0)" &&
    "$HERE/install.sh" "${slice[@]}" "${through[@]}" "${install_options[@]}" &&
    "$HERE/launch.sh" "${slice[@]}" "${through[@]}" --run "$run_name" "${launch_options[@]}" \
      -- "${ARGUMENTS[@]}"
}

look() {
  on_slices all "if [ -e m6rec/tpu_scripts/on_host.sh ]; then $(on_host status "$run_name"); else echo m6rec-host \"\$(hostname)\" absent; fi"
}

# Whether Google Cloud takes all hosts for healthy.
seem_healthy() {
  local node state
  for node in $(nodes); do
    state=$(gcloud compute tpus tpu-vm describe "$node" "--project=$project" "--zone=$zone" \
      '--format=value(state,health)') || return 1
    [[ $state =~ ^READY[[:space:]]+HEALTHY$ ]] || return 1
  done
}

# Puts into RUN what the hosts report together.
read_run() {
  local output reports
  RUN=unreachable
  output=$(look) || return 0
  reports=$(sed -n 's/^m6rec-host [^ ]* //p' <<<"$output" | sort | uniq -c)
  if [[ -z $reports ]]; then
    return
  elif grep -q ' failed 2$' <<<"$reports"; then
    RUN=refused
  elif grep -q ' failed ' <<<"$reports"; then
    RUN=failed
  elif grep -q ' stopped$' <<<"$reports"; then
    RUN=stopped
  elif grep -q ' lost$' <<<"$reports"; then
    RUN=lost
  elif grep -q ' absent$' <<<"$reports"; then
    RUN=absent
  elif grep -q ' running' <<<"$reports"; then
    RUN=running
  else
    RUN=finished
  fi
}

retries=0
delay=$backoff
# A retry: counts it, waits, longer every time. Leaves when there are no more.
retry() {
  if ((retries >= max_retries)); then
    say "$1; giving up after $retries retries (--max-retries)"
    exit 1
  fi
  retries=$((retries + 1))
  say "$1; retry $retries of $max_retries in $delay s"
  sleep "$delay"
  delay=$((delay * 2 < max_backoff ? delay * 2 : max_backoff))
}

if ((dry_run)); then
  # The way from nothing to a run, without its repetitions.
  create
  start
  queued_resources describe '--format=value(state.state)'
  look
  exit
fi

# What the other scripts refuse, they refuse before there is a slice to pay for.
"$HERE/create.sh" "${slice[@]}" --dry-run "--accelerator-type=$accelerator_type" "${create_options[@]}" >/dev/null
"$HERE/install.sh" "${slice[@]}" --dry-run "${install_options[@]}" >/dev/null
"$HERE/launch.sh" "${slice[@]}" --dry-run --run "$run_name" "${launch_options[@]}" -- "${ARGUMENTS[@]}" >/dev/null

new_slice=1    # whether nothing was started on this slice yet
launched=0     # whether this watch has seen the run going on
start_failed=0 # whether the last try to start it failed
started=0      # when it was started
unreachable=0  # looks in a row without an answer
last=''

# Retries with another slice.
renew() {
  retry "$1"
  if delete; then
    new_slice=1
    unreachable=0
  else
    say "$name could not be deleted; trying again"
  fi
}

# Starts the run; what it is told wrongly, no retry mends.
try_start() {
  local status=0
  start || status=$?
  if ((status == 2)); then exit 2; fi
  start_failed=$((status != 0))
  if ((!start_failed)); then
    new_slice=0
    launched=1
    started=$SECONDS
  fi
}

while :; do
  if ! read_state ACTIVE; then
    retry 'gcloud cannot tell the state'
    continue
  fi
  RUN=''
  if [[ $STATE == ACTIVE ]]; then read_run; fi
  if [[ "$STATE $RUN" != "$last" ]]; then
    say "$name is $STATE${RUN:+, the run $run_name is $RUN}"
    last="$STATE $RUN"
  fi
  if [[ $RUN != unreachable ]]; then unreachable=0; fi
  case $STATE-$RUN in
    NONE-)
      if ((!new_slice)); then retry "$name is gone"; fi
      new_slice=1
      status=0
      create || status=$?
      if ((status == 2)); then exit 2; fi
      if ((status)); then retry "$name could not be created"; fi
      ;;
    SUSPENDED- | FAILED-) renew "$name is $STATE" ;;
    ACTIVE-finished)
      say "the run $run_name has finished"
      exit
      ;;
    ACTIVE-running)
      new_slice=0
      launched=1
      if ((started == 0)); then started=$SECONDS; fi
      if ((retries > 0 && SECONDS - started >= healthy_after)); then
        retries=0
        delay=$backoff
      fi
      ;;
    ACTIVE-unreachable)
      unreachable=$((unreachable + 1))
      if ((unreachable >= unreachable_polls)); then
        if ((unreachable < 12 * unreachable_polls)) && seem_healthy; then
          if ((unreachable % unreachable_polls == 0)); then
            say "the hosts of $name do not answer, and Google Cloud says that they are healthy: does this machine reach them? gcloud compute tpus tpu-vm ssh tells"
          fi
        else
          renew "the hosts of $name do not answer"
        fi
      fi
      ;;
    ACTIVE-failed | ACTIVE-lost)
      retry "the run $run_name $RUN"
      read_run
      if [[ $RUN == stopped ]]; then
        launched=1 # by a user, while this watch waited
      else
        try_start
      fi
      ;;
    ACTIVE-absent)
      if ((start_failed)); then
        retry "the run $run_name could not be started"
      elif ((!new_slice)); then
        retry "a host of $name lost its disk"
      fi
      try_start
      ;;
    ACTIVE-refused | ACTIVE-stopped)
      # What happened before this watch began is no reason to leave: it may have been mended since.
      if ((launched)) && [[ $RUN == refused ]]; then
        say "m6rec refuses what it was given; logs.sh --run $run_name --worker all --no-follow tells why"
        exit 2
      elif ((launched)); then
        say "the run $run_name was stopped by a user"
        exit
      fi
      if ((start_failed)); then retry "the run $run_name could not be started"; fi
      try_start
      ;;
  esac
  sleep "$poll"
done
