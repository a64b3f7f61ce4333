#!/usr/bin/env bash
# Asks XLA's TPU compiler whether a run fits a slice, before the slice is asked for.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

accelerator_type=${M6REC_TPU_ACCELERATOR_TYPE:-}
m6rec=${M6REC:-m6rec}
arguments=()

usage() {
  cat <<TEXT
Usage: compile_check.sh --accelerator-type TYPE [options] -- ARGUMENTS

Compiles the steps of a run for a slice, or several, and tells memory, time and communication: m6rec
compile, with the slice named as for create.sh. It runs on this machine, which needs no TPU. Status 1
says that the run does not fit. ARGUMENTS are those of m6rec compile, for instance
  --model xl --json report.json
  --gin_file gin_configs/examples/movielens_pretrain.gin --gin.MODEL_DIR=unused

  --accelerator-type TYPE  v4-N, v5p-N (N TensorCores), v5litepod-N, v6e-N (N chips), or a shape such
                           as v5e:4x8. Default: \$M6REC_TPU_ACCELERATOR_TYPE
  --node-count N           number of slices. Default: \$M6REC_TPU_NODE_COUNT, else 1
  --m6rec PROGRAM          Default: \$M6REC, else m6rec
  --dry-run                print the command, run nothing
  --help                   this text

Neither --project (or \$M6REC_TPU_PROJECT) nor anything else of Google Cloud is needed.
TEXT
}

split_equals "$@"
set -- "${WORDS[@]}"
while (($#)); do
  case $1 in
    --project | --zone | --name | --ssh-option) unknown_argument "$1" ;;
  esac
  if common_option "$@"; then
    shift "$CONSUMED"
    continue
  fi
  case $1 in
    --accelerator-type) need_value "$@" && accelerator_type=$2 && shift 2 ;;
    --m6rec) need_value "$@" && m6rec=$2 && shift 2 ;;
    --)
      shift
      arguments=("$@")
      break
      ;;
    *) unknown_argument "$1" ;;
  esac
done
[[ -n $accelerator_type ]] ||
  fail 'no accelerator type: give --accelerator-type TYPE or set M6REC_TPU_ACCELERATOR_TYPE, for instance v5litepod-16'
need_whole_number --node-count "$node_count"
((${#arguments[@]})) ||
  fail 'nothing to compile: put the arguments of m6rec compile after --, for instance -- --model xl'
((dry_run)) || command -v "$m6rec" >/dev/null ||
  fail "$(quote "$m6rec") is not on PATH: install this package, or name the program with --m6rec"

run "$m6rec" compile --topology "$accelerator_type" --slices "$node_count" "${arguments[@]}"
