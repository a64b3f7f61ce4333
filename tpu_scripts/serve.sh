#!/usr/bin/env bash
# Starts a server on every host of a slice, each over the chips of its host.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

model=${M6REC_TPU_MODEL:-}
chips=2,2,1 environment=()
VALUES+=([--model]=model [--chips]=chips)
LISTS+=([--env]=environment)

usage() {
  cat <<TEXT
Usage: serve.sh --model gs://BUCKET/FOLDER [options] -- RUN --bank BANK ...

Copies run, bank, index and prepared data to ~/m6rec-model of every host and starts \`m6rec serve\` there, so
that RUN and BANK are folders of the bucket's. Each host serves the whole model over its own chips, at port
8080 of its own addresses. Create the slice with --extra tpu,serve. \`launch.sh --run serve --stop\` ends it.

  --model ADDRESS   Default: \$M6REC_TPU_MODEL
  --chips X,Y,Z     how the chips of a host lie: 2,2,1 for four, 2,4,1 for eight. Default: $chips
  --env NAME=VALUE  an environment variable of the server; may be given several times

$(slice_options)
TEXT
}

parse_options "$@"
[[ $model == gs://* ]] || fail "--model '$model': write gs://BUCKET/FOLDER"
((${#ARGUMENTS[@]})) || fail 'nothing to serve: write -- RUN at the end'
# What the bucket no longer has would be served: a task that was taken out, a later step.
on_hosts "mkdir -p m6rec-model && gcloud storage rsync --recursive --delete-unmatched-destination-objects $(printf %q "$model") m6rec-model"
# To libtpu a host is a slice of its own; otherwise it waits for the others.
start_unit m6rec-serve m6rec-model 0 TPU_PROCESS_BOUNDS=1,1,1 "TPU_CHIPS_PER_PROCESS_BOUNDS=$chips" \
  TPU_WORKER_ID=0 TPU_WORKER_HOSTNAMES=localhost "${environment[@]}" -- serve "${ARGUMENTS[@]}" --host 0.0.0.0
