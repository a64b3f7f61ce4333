#!/usr/bin/env bash
# Starts m6rec on every host of a slice, stops it, or says how it is.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run_name=${M6REC_TPU_RUN:-run}
data=${M6REC_TPU_DATA:-}
stop=0 status=0 wait=0 environment=()
VALUES+=([--run]=run_name [--data]=data)
SWITCHES+=([--stop]=stop [--status]=status [--wait]=wait)
LISTS+=([--env]=environment)

usage() {
  cat <<TEXT
Usage: launch.sh [options] -- [t5x.]train|eval|infer --gin_file FILE --gin.NAME=VALUE ...
       launch.sh [options] --stop | --status

Starts m6rec on every host in the background, in ~/m6rec. It goes on when you log out; a run that is going
on is not started twice. The same command resumes it from its newest checkpoint. Hosts share no disk:
give a bucket as --gin.MODEL_DIR=gs://BUCKET/FOLDER.

  --run RUN         its name. Default: \$M6REC_TPU_RUN, else $run_name
  --data ADDRESS    gs://BUCKET/FOLDER with prepared data and vocabulary: copied to ~/m6rec-data of every
                    host, which m6rec then reads. Default: \$M6REC_TPU_DATA; none: nothing is copied
  --env NAME=VALUE  an environment variable of the run; may be given several times
  --wait            until it ends, with its exit status
  --stop            let it finish its step, save and leave; killed after 300 seconds
  --status          of the run, or of the server serve.sh started, on every host

$(slice_options)
TEXT
}

parse_options "$@"
[[ $run_name =~ ^[A-Za-z0-9_.-]+$ ]] || fail "--run '$run_name': use letters, digits, '.', '_' and '-'"
if ((stop)); then
  on_hosts "sudo systemctl stop m6rec-$run_name"
elif ((status)); then
  on_hosts "echo \$(hostname) \$(systemctl show m6rec-$run_name --property=ActiveState,Result,ExecMainStatus)"
else
  [[ ${ARGUMENTS[0]:-} =~ ^(t5x\.)?(train|eval|infer)$ ]] ||
    fail "'${ARGUMENTS[0]:-}' does not run on a slice: write -- train --gin_file FILE at the end, or eval, infer, t5x.train, t5x.eval, t5x.infer"
  [[ -z $data ]] || on_hosts "mkdir -p m6rec-data && gcloud storage rsync --recursive $(printf %q "$data") m6rec-data"
  # Named, the cluster must be there: a host that sees no TPU would otherwise train alone.
  start_unit "m6rec-$run_name" m6rec "$wait" "${environment[@]}" -- "${ARGUMENTS[0]}" \
    --gin.join_processes.cluster=tpu "${ARGUMENTS[@]:1}"
fi
