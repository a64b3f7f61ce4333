#!/usr/bin/env bash
# Starts a server on every host of a slice, each over the chips of its host.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run_name=${M6REC_TPU_SERVER:-serve}
model=${M6REC_TPU_MODEL:-}
chips=2,2,1
environment=()
takes_arguments=1

usage() {
  cat <<TEXT
Usage: serve.sh [options] -- '~/m6rec-model/RUN' --bank '~/m6rec-model/BANK' ...

Starts \`m6rec serve\` with these arguments on every host, in the background. Hosts share no disk and do not
know of each other: each serves the whole model over its own chips, at port 8080 of its own addresses, and
a balancer asks those whose /readyz says 200. Install with install.sh --extra tpu,serve. Over several chips
rows are split by --gin_file gin_configs/sharding/data_parallel.gin, layers by fully_sharded_2d.gin.

The server is a run of its name: launch.sh --run RUN --status tells how it is, logs.sh --run RUN what it says,
launch.sh --run RUN --stop ends it, requests that have come are answered. Start it anew to serve a new model.

  --run RUN           its name. Default: \$M6REC_TPU_SERVER, else serve
  --model ADDRESS     gs://BUCKET/FOLDER with run, bank, index and prepared data: copied to ~/m6rec-model
                      of every host first. Default: \$M6REC_TPU_MODEL; none: nothing is copied
  --chips X,Y,Z       how the chips of a host lie: 2,2,1 for four, 2,4,1 for eight. Default: $chips
  --env NAME=VALUE    an environment variable of the server; may be given several times
$(ssh_options)

$(slice_options)
TEXT
}

own_option() {
  case $1 in
    --run) need_value "$@" && run_name=$2 ;;
    --model) need_value "$@" && model=$2 ;;
    --chips) need_value "$@" && chips=$2 ;;
    --env) need_value "$@" && environment+=("$2") ;;
    *) return 1 ;;
  esac
}

parse_options "$@"
check_slice
check_run_name "$run_name"
check_environment "${environment[@]}"
[[ $chips =~ ^[1-9],[1-9],[1-9]$ ]] || fail "--chips $(quote "$chips"): write it like 2,2,1"
((${#ARGUMENTS[@]})) || fail "nothing to serve: write -- '~/m6rec-model/RUN' at the end"

if [[ -n $model ]]; then
  check_bucket_address --model "$model"
  on_slices all "$(on_host model "${model%/}")"
fi
listens=0
for argument in "${ARGUMENTS[@]}"; do
  if [[ $argument == --host || $argument == --host=* ]]; then listens=1; fi
done
((listens)) || ARGUMENTS+=(--host 0.0.0.0)
# To libtpu a host is a slice of its own; otherwise it waits for the others.
alone=("TPU_PROCESS_BOUNDS=1,1,1" "TPU_CHIPS_PER_PROCESS_BOUNDS=$chips")
alone+=("TPU_WORKER_ID=0" "TPU_WORKER_HOSTNAMES=localhost")
on_slices all "$(on_host start "$run_name" "${alone[@]}" "${environment[@]}" -- serve "${ARGUMENTS[@]}")"
