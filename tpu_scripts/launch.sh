#!/usr/bin/env bash
# Starts m6rec on every host of a slice, or stops it, or tells how it is.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

action=start
run_name=${M6REC_TPU_RUN:-m6rec}
data=${M6REC_TPU_DATA:-}
grace=300
force=0
environment=()
takes_arguments=1

usage() {
  cat <<TEXT
Usage: launch.sh [options] -- [t5x.]train|eval|infer --gin_file FILE --gin.NAME=VALUE ...
       launch.sh [options] --stop | --status

Starts m6rec on every host, in the background: it goes on when you log out. Output goes to
~/m6rec-runs/RUN/log of each host (see logs.sh), the process id to pid beside it. A run that is going
on is not started twice. The same command resumes it from its newest checkpoint. Gin files are found
among the installed ones and relative to ~/m6rec, where install.sh --include puts yours.

Hosts share no disk: give a bucket as --gin.MODEL_DIR=gs://BUCKET/FOLDER. A slice of P hosts wants
BATCH_SIZE and BatchIterator.num_shards to be multiples of P (of all hosts, of several slices); t5x
wants BATCH_SIZE to be a multiple of the copies of the model. t5x.* needs install.sh --t5x.

  --run RUN           its name. Default: \$M6REC_TPU_RUN, else m6rec
  --data ADDRESS      what stage_data.sh wrote: copied to ~/m6rec-data of every host, which m6rec
                      then reads as M6REC_DATA_DIR. Default: \$M6REC_TPU_DATA; none: nothing is copied
  --env NAME=VALUE    an environment variable of the run; may be given several times
  --stop              let training finish its step, save and leave; watch.sh then leaves, too
  --grace SECONDS     how long --stop waits. Default: $grace
  --force             after that, kill it
  --status            say of every host whether the run is going on there, and how it ended
$(ssh_options)

$(slice_options)
TEXT
}

own_option() {
  case $1 in
    --run) need_value "$@" && run_name=$2 ;;
    --data) need_value "$@" && data=$2 ;;
    --env) need_value "$@" && environment+=("$2") ;;
    --stop) action=stop CONSUMED=1 ;;
    --status) action=status CONSUMED=1 ;;
    --grace) need_value "$@" && grace=$2 ;;
    --force) force=1 CONSUMED=1 ;;
    *) return 1 ;;
  esac
}

parse_options "$@"
check_slice
check_run_name "$run_name"
need_whole_number --grace "$grace"

case $action in
  stop)
    on_slices all "$(on_host stop "$run_name" "$grace" "$force" 1)"
    exit
    ;;
  status)
    on_slices all "$(on_host status "$run_name")"
    exit
    ;;
esac

((${#ARGUMENTS[@]})) || fail 'nothing to run: write -- train --gin_file FILE at the end'
case ${ARGUMENTS[0]} in
  train | eval | infer | t5x.train | t5x.eval | t5x.infer) ;;
  *) fail "cannot launch $(quote "${ARGUMENTS[0]}"): only train, eval and infer run on a slice, and t5x.train, t5x.eval and t5x.infer; serve.sh serves" ;;
esac
has_gin_file=0
for argument in "${ARGUMENTS[@]}"; do
  case $argument in
    --gin_file | --gin_file=* | --recipe | --recipe=*) has_gin_file=1 ;;
    --gin.MODEL_DIR=* | --gin.*_OUTPUT_DIR=*)
      address=${argument#*=}
      [[ ${address#[\'\"]} == gs://* ]] ||
        say "warning: ${argument%%=*} is $(quote "$address"): hosts share no disk, so several hosts need a bucket (gs://...) unless you mounted a shared file system there"
      ;;
  esac
done
# What a run is evaluated with, it says itself.
[[ ${ARGUMENTS[0]} != @(train|t5x.*) ]] || ((has_gin_file)) || fail "${ARGUMENTS[0]} needs --recipe NAME or --gin_file FILE after --"
check_environment "${environment[@]}"

if [[ -n $data ]]; then
  check_bucket_address --data "$data"
  # All hosts have their data before the first one starts and waits for the others.
  on_slices all "$(on_host data "${data%/}")"
fi
on_slices all "$(on_host start "$run_name" "${environment[@]}" -- "${ARGUMENTS[@]}")"
