#!/usr/bin/env bash
# Creates a TPU slice, or several, and installs this checkout on its hosts.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

accelerator_type=${M6REC_TPU_ACCELERATOR_TYPE:-}
runtime_version='' extra=tpu spot=0 t5x=0 create_flags=() includes=()
VALUES+=([--accelerator-type]=accelerator_type [--runtime-version]=runtime_version [--extra]=extra)
SWITCHES+=([--spot]=spot [--t5x]=t5x)
LISTS+=([--create-option]=create_flags [--include]=includes)

usage() {
  cat <<TEXT
Usage: create.sh --accelerator-type TYPE [options]

Asks for a TPU slice as a queued resource, waits until it is ACTIVE, and installs this checkout on every
host: code in ~/m6rec, environment in ~/m6rec-env. A slice that exists is kept: run it again to bring a
changed checkout there.

  --accelerator-type TYPE  v4-N, v5p-N, v5litepod-N, v6e-N. Default: \$M6REC_TPU_ACCELERATOR_TYPE
  --runtime-version V      software of the VMs. Default: by TYPE
  --spot                   cheap machines that may be taken away at any time
  --create-option FLAG     one more flag for gcloud, such as --create-option=--reserved
  --extra NAMES            of the package, separated by commas. Default: $extra
  --t5x                    t5x, too
  --include PATH           a file or folder below the current one that goes along, under the same path

$(slice_options)
TEXT
}

parse_options "$@"
case $accelerator_type in
  v4-[1-9]*) default=tpu-ubuntu2204-base ;;
  v5litepod-[1-9]*) default=v2-alpha-tpuv5-lite ;;
  v5p-[1-9]*) default=v2-alpha-tpuv5 ;;
  v6e-[1-9]*) default=v2-alpha-tpuv6e ;;
  *) [[ -n $accelerator_type && -n $runtime_version ]] ||
    fail "--accelerator-type '$accelerator_type' is none of v4-N, v5litepod-N, v5p-N, v6e-N (for others give --runtime-version, too)" ;;
esac
for path in "${includes[@]}"; do
  [[ $path != /* && -e $path ]] || fail "--include '$path': there is no such file or folder below $PWD"
done

state() { queued_resources describe '--format=value(state.state)'; }
if ((dry_run)) || ! state >/dev/null 2>&1; then
  nodes=("--node-id=$name")
  ((node_count == 1)) || nodes=("--node-count=$node_count" "--node-prefix=$name")
  ((!spot)) || create_flags+=(--spot)
  queued_resources create "--accelerator-type=$accelerator_type" \
    "--runtime-version=${runtime_version:-$default}" "${nodes[@]}" "${create_flags[@]}"
fi
until ((dry_run)) || [[ ${now:=} == ACTIVE ]]; do
  now=$(state)
  case $now in
    ACTIVE) ;;
    FAILED | SUSPENDED | SUSPENDING | DELETING) fail "$name is $now and will never be ACTIVE: remove it with delete.sh" ;;
    *) echo "$name is $now" >&2 && sleep 30 ;;
  esac
done

archive=${TMPDIR:-/tmp}/m6rec-$name.tar.gz
run tar -czf "$archive" --exclude=__pycache__ -C "$(dirname "${BASH_SOURCE[0]}")/.." pyproject.toml \
  README.md LICENSE constraints.txt requirements-t5x.txt m6rec_jax tasks gin_configs \
  -C "$PWD" "${includes[@]/#/./}"
for node in $(nodes); do
  run gcloud compute tpus tpu-vm scp "$archive" "$node:m6rec.tar.gz" "--project=$project" "--zone=$zone" \
    --worker=all --quiet "${ssh_flags[@]}"
done
# Ubuntu 22.04 brings Python 3.10, which is too old; later ones want to be told that --user is meant.
pip='python3 -m uv pip install --quiet --python ../m6rec-env/bin/python'
on_hosts "set -e; rm -rf m6rec; mkdir m6rec; tar -xzf m6rec.tar.gz -C m6rec; cd m6rec
python3 -m pip install --quiet --user uv 2>/dev/null || python3 -m pip install --quiet --user --break-system-packages uv
python3 -m uv venv --quiet --allow-existing --python 3.11 ../m6rec-env
$pip -c constraints.txt -e '.[$extra]'
((!$t5x)) || $pip --no-deps -r requirements-t5x.txt
../m6rec-env/bin/m6rec --version"
