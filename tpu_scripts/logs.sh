#!/usr/bin/env bash
# Follows what a run prints.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run_name=${M6REC_TPU_RUN:-m6rec}
worker=0
node=0
lines=100
follow=1

usage() {
  cat <<TEXT
Usage: logs.sh [options]

Prints the end of a run's log, each line with its host, and follows it. Only the first host writes
metrics; errors are most often found in the log of the host that failed.

  --run RUN       Default: \$M6REC_TPU_RUN, else m6rec
  --worker N|all  which host of the slice. Default: $worker
  --node N        which of several slices. Default: $node
  --lines N       of what was printed before. Default: $lines
  --no-follow     print and leave
$(ssh_options)

$(slice_options)
TEXT
}

own_option() {
  case $1 in
    --run) need_value "$@" && run_name=$2 ;;
    --worker) need_value "$@" && worker=$2 ;;
    --node) need_value "$@" && node=$2 ;;
    --lines) need_value "$@" && lines=$2 ;;
    --no-follow) follow=0 CONSUMED=1 ;;
    *) return 1 ;;
  esac
}

parse_options "$@"
check_slice
check_run_name "$run_name"
need_whole_number --lines "$lines"
need_whole_number --node "$node"
[[ $worker == all || $worker =~ ^[0-9]+$ ]] || fail "--worker $(quote "$worker"): a number, or all"
((node < node_count)) || fail "--node $node: there are $node_count slices, counted from 0 (see --node-count)"

mapfile -t names < <(nodes)
on_slice "${names[node]}" "$worker" "$(on_host logs "$run_name" "$lines" "$follow")"
