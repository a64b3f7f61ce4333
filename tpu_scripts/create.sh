#!/usr/bin/env bash
# Asks for a TPU slice, or several, as a queued resource, and waits until it is there.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

accelerator_type=${M6REC_TPU_ACCELERATOR_TYPE:-}
runtime_version=${M6REC_TPU_RUNTIME_VERSION:-}
spot=0
wait=1
poll=30
timeout=0
create_flags=()

usage() {
  cat <<TEXT
Usage: create.sh --accelerator-type TYPE [options]

Asks for a TPU slice as a queued resource and waits until it is ACTIVE. When it exists already,
nothing is created.

  --accelerator-type TYPE  v4-N, v5p-N (N TensorCores), v5litepod-N, v6e-N (N chips).
                           Default: \$M6REC_TPU_ACCELERATOR_TYPE
  --runtime-version V      software of the VMs. Default: \$M6REC_TPU_RUNTIME_VERSION, else
                           v4 tpu-ubuntu2204-base, v5litepod v2-alpha-tpuv5-lite,
                           v5p v2-alpha-tpuv5, v6e v2-alpha-tpuv6e
  --spot                   cheap machines that may be taken away at any time (see watch.sh)
  --create-option FLAG     one more flag for gcloud, for instance --create-option=--reserved or
                           --create-option=--service-account=ACCOUNT; may be given several times
  --no-wait                return once the request is in the queue
  --poll SECONDS           between two looks at the state while waiting. Default: $poll
  --timeout SECONDS        give up waiting (the request stays). 0, the default: never

$(slice_options)
TEXT
}

default_runtime_version() {
  case $1 in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
  esac
}

check_accelerator_type() {
  [[ -n $accelerator_type ]] ||
    fail 'no accelerator type: give --accelerator-type TYPE or set M6REC_TPU_ACCELERATOR_TYPE, for instance v5litepod-16'
  case $accelerator_type in
    v5e-*) fail "unknown accelerator type $(quote "$accelerator_type"): v5e is spelled v5litepod-${accelerator_type#v5e-}" ;;
    tpu7x* | v7x*) fail "accelerator type $(quote "$accelerator_type") is not given as a queued resource; it needs Google Kubernetes Engine" ;;
  esac
  if [[ ! $accelerator_type =~ ^(v4|v5litepod|v5p|v6e)-[1-9][0-9]*$ ]]; then
    [[ -n $runtime_version && $accelerator_type =~ ^v[0-9a-z]+-[1-9][0-9]*$ ]] ||
      fail "unknown accelerator type $(quote "$accelerator_type"): v4-N, v5litepod-N, v5p-N or v6e-N with a number N (for another kind, name its --runtime-version, too)"
  fi
  runtime_version=${runtime_version:-$(default_runtime_version "$accelerator_type")}
}

wait_until_active() {
  local last='' started=$SECONDS failures=0
  while :; do
    if read_state ACTIVE; then
      failures=0
    else
      STATE='in a state that gcloud cannot tell'
      failures=$((failures + 1))
      if ((failures >= 10)); then
        say "$name is $STATE; the request stays in the queue (delete.sh removes it)"
        exit 1
      fi
    fi
    if ((!dry_run)) && [[ $STATE != "$last" ]]; then
      say "$name is $STATE"
      last=$STATE
    fi
    case $STATE in
      ACTIVE) return ;;
      NONE | FAILED | SUSPENDED | SUSPENDING | DELETING)
        say "$name became $STATE: gcloud compute tpus queued-resources describe $name --project=$project --zone=$zone tells why; delete.sh removes it"
        exit 1
        ;;
    esac
    if ((timeout > 0 && SECONDS - started >= timeout)); then
      say "$name is still $STATE after $timeout s; the request stays in the queue (delete.sh removes it)"
      exit 1
    fi
    sleep "$poll"
  done
}

own_option() {
  case $1 in
    --accelerator-type) need_value "$@" && accelerator_type=$2 ;;
    --runtime-version) need_value "$@" && runtime_version=$2 ;;
    --create-option) need_value "$@" && create_flags+=("$2") ;;
    --spot) spot=1 CONSUMED=1 ;;
    --no-wait) wait=0 CONSUMED=1 ;;
    --poll) need_value "$@" && poll=$2 ;;
    --timeout) need_value "$@" && timeout=$2 ;;
    *) return 1 ;;
  esac
}

parse_options "$@"
check_slice
check_accelerator_type
need_whole_number --poll "$poll"
need_whole_number --timeout "$timeout"

read_state NONE
case $STATE in
  NONE)
    flags=("--accelerator-type=$accelerator_type" "--runtime-version=$runtime_version")
    if ((node_count == 1)); then
      flags+=("--node-id=$name")
    else
      flags+=("--node-count=$node_count" "--node-prefix=$name")
    fi
    if ((spot)); then flags+=(--spot); fi
    queued_resources create "${flags[@]}" "${create_flags[@]}"
    ;;
  FAILED | SUSPENDED | SUSPENDING | DELETING)
    fail "$name exists and is $STATE, so it will never be ACTIVE: remove it with delete.sh first, or let watch.sh do both"
    ;;
  *) say "$name exists and is $STATE; nothing was created" ;;
esac
if ((wait)); then wait_until_active; fi
