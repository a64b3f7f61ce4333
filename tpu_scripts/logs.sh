#!/usr/bin/env bash
# Follows what a run prints.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run_name=${M6REC_TPU_RUN:-run}
worker=0
VALUES+=([--run]=run_name [--worker]=worker)

usage() {
  cat <<TEXT
Usage: logs.sh [options]

Prints the end of what a run printed, each line with its host, and follows it. Only the first host writes
metrics; an error is most often in the log of the host that failed.

  --run RUN       Default: \$M6REC_TPU_RUN, else $run_name; serve is what serve.sh started
  --worker N|all  which host of the slice. Default: $worker

$(slice_options)
TEXT
}

parse_options "$@"
on_hosts "$(printf 'sudo journalctl --follow --lines=1000 --unit=m6rec-%q' "$run_name")" "$worker"
