#!/usr/bin/env bash
# Renders a data set on this machine and copies the prepared text and the vocabulary to a bucket.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

data=${M6REC_TPU_DATA:-}
data_set=
fetch=0
vocabulary=1
m6rec=${M6REC:-m6rec}
staging=${XDG_CACHE_HOME:-$HOME/.cache}/m6rec-tpu/data
takes_arguments=1

usage() {
  cat <<TEXT
Usage: stage_data.sh --data-set FOLDER --data gs://BUCKET/FOLDER [options] -- --gin_file FILE ...

Renders a data set on this machine (m6rec data prepare, which builds TFDS shards), trains its
vocabulary and copies both to a bucket, from where launch.sh brings them to every host. The tables
themselves are not copied. What stands after -- goes to both commands of m6rec; it names what the
vocabulary is trained on (train_on_prepared.dataset or .sources), and may be left out with
--no-vocabulary. Run it again with another split to add to the bucket.

  --data-set FOLDER   a data set folder, or with --fetch the name of a public data set
  --fetch             download the public data set first
  --data ADDRESS      where in which bucket. Default: \$M6REC_TPU_DATA
  --no-vocabulary     keep the vocabulary that is there
  --staging FOLDER    where it is rendered: holds what was staged before and nothing else.
                      Default: \$XDG_CACHE_HOME/m6rec-tpu/data, else ~/.cache/m6rec-tpu/data
  --m6rec PROGRAM     Default: \$M6REC, else m6rec
  --project ID        Google Cloud project. Default: \$M6REC_TPU_PROJECT, else \$CLOUDSDK_CORE_PROJECT
  --dry-run           print the commands, run nothing
  --help              this text

Public data sets are fetched to \$M6REC_DATA_DIR, else (also if it is in a bucket) to ~/.cache/m6rec.
TEXT
}

own_option() {
  case $1 in
    --zone | --name | --node-count | --ssh-option) unknown_argument "$1" ;;
    --data-set) need_value "$@" && data_set=$2 ;;
    --fetch) fetch=1 CONSUMED=1 ;;
    --data) need_value "$@" && data=$2 ;;
    --no-vocabulary) vocabulary=0 CONSUMED=1 ;;
    --staging) need_value "$@" && staging=$2 ;;
    --m6rec) need_value "$@" && m6rec=$2 ;;
    *) return 1 ;;
  esac
}

parse_options "$@"
[[ -n $project ]] ||
  fail 'no project: give --project ID or set M6REC_TPU_PROJECT (gcloud projects list shows yours)'
check_bucket_address --data "$data"
[[ -n $data_set ]] || fail 'no data set: give --data-set FOLDER, or --fetch and --data-set NAME'
if ((fetch)); then
  [[ $data_set != */* ]] || fail "--fetch with --data-set $(quote "$data_set"): give a name, such as movielens-100k"
  # Where m6rec data fetch puts it: a bucket holds prepared data alone.
  cache=${M6REC_DATA_DIR:-$HOME/.cache/m6rec}
  [[ $cache != *://* ]] || cache=$HOME/.cache/m6rec
  folder=$cache/$data_set
else
  [[ -d $data_set ]] || fail "--data-set $(quote "$data_set"): there is no such folder (--fetch downloads public data sets)"
  folder=$data_set
fi
if ((vocabulary && !${#ARGUMENTS[@]})); then
  fail 'no gin file: give -- --gin_file FILE that names what the vocabulary is trained on (train_on_prepared.dataset), or --no-vocabulary'
fi
bucket=${data#gs://}
bucket=gs://${bucket%%/*}
if ((!dry_run)); then
  command -v gcloud >/dev/null || fail 'gcloud is not on PATH: install the Google Cloud CLI, then run gcloud auth login'
  command -v "$m6rec" >/dev/null || fail "$(quote "$m6rec") is not on PATH: install this package, or name the program with --m6rec"
fi

# Before the work: rendering may take hours.
run gcloud storage buckets describe "$bucket" "--project=$project" '--format=value(name)' ||
  fail "cannot read the bucket $bucket: create it with gcloud storage buckets create $bucket --project=$project --location=REGION (the region of your TPUs), or ask for access"
if ((fetch)); then run "$m6rec" data fetch "$data_set"; fi
run mkdir -p "$staging"
run env "M6REC_DATA_DIR=$staging" "$m6rec" data prepare "$folder" "${ARGUMENTS[@]}"
if ((vocabulary)); then run env "M6REC_DATA_DIR=$staging" "$m6rec" vocab train "${ARGUMENTS[@]}"; fi
run gcloud storage rsync --recursive "$staging" "${data%/}" "--project=$project"
