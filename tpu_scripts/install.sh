#!/usr/bin/env bash
# Puts this checkout, and a user's own gin files and tasks, on every host and installs it there.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

python_version=${M6REC_TPU_PYTHON:-3.11}
extra=tpu
t5x=0
includes=()
archive_folder=${XDG_CACHE_HOME:-$HOME/.cache}/m6rec-tpu

usage() {
  cat <<TEXT
Usage: install.sh [options]

Copies this checkout to ~/m6rec of every host and installs it into ~/m6rec-env with the versions of
constraints.txt. May be run again at any time but during a run. The archive that
is copied lies in \$XDG_CACHE_HOME/m6rec-tpu, else ~/.cache/m6rec-tpu.

  --include PATH        a file or folder below the current directory that goes along under the same
                        relative path: your own gin files and tasks/. May be given several times
  --python-version V    a Python that the hosts lack is fetched by uv. Default: \$M6REC_TPU_PYTHON,
                        else 3.11
  --extra NAMES         of the package, separated by commas. Default: $extra
  --t5x                 t5x, too: requirements-t5x.txt
$(ssh_options)

$(slice_options)
TEXT
}

own_option() {
  case $1 in
    --include) need_value "$@" && includes+=("$2") ;;
    --python-version) need_value "$@" && python_version=$2 ;;
    --extra) need_value "$@" && extra=$2 ;;
    --t5x) t5x=1 CONSUMED=1 ;;
    *) return 1 ;;
  esac
}

parse_options "$@"
check_slice
[[ $python_version =~ ^3\.1[1-3]$ ]] ||
  fail "--python-version $(quote "$python_version"): 3.11 to 3.13, written like 3.11"
[[ $extra =~ ^[a-z0-9-]+(,[a-z0-9-]+)*$ ]] ||
  fail "--extra $(quote "$extra"): extras in pyproject.toml, separated by commas"
for path in "${includes[@]}"; do
  [[ $path != /* && /$path/ != */../* ]] ||
    fail "--include $(quote "$path"): name it relative to the current directory, and below it"
  [[ -e $path ]] || fail "--include $(quote "$path"): there is no such file or folder in $PWD"
done

archive=$archive_folder/$name.tar.gz
members=(pyproject.toml README.md LICENSE constraints.txt requirements-t5x.txt m6rec_jax tasks gin_configs tpu_scripts)
run mkdir -p "$archive_folder"
if ((${#includes[@]})); then
  # ./: a path that begins with a hyphen is no option.
  members+=(-C "$PWD" "${includes[@]/#/./}")
fi
run tar -czf "$archive" --exclude=__pycache__ -C "$(dirname "$HERE")" "${members[@]}"
# gcloud refuses to copy to several hosts where an ssh-agent holds keys and not gcloud's own; without
# an agent it takes its key from the file.
copy=(gcloud)
key=$(ssh-keygen -lf ~/.ssh/google_compute_engine.pub 2>/dev/null | cut -d' ' -f2) || true
if keys=$(ssh-add -l 2>/dev/null) && { [[ -z $key ]] || ! grep -qF -- "$key" <<<"$keys"; }; then
  copy=(env -u SSH_AUTH_SOCK gcloud)
fi
for node in $(nodes); do
  run "${copy[@]}" compute tpus tpu-vm scp "$archive" "$node:m6rec.tar.gz" "--project=$project" \
    "--zone=$zone" --worker=all --quiet "${ssh_flags[@]}" "${patience[@]/#/--scp-flag=}"
done
# The new files bring the program that puts them in place: a bare host has none.
on_slices all "rm -rf m6rec.new && mkdir m6rec.new && tar -xzf m6rec.tar.gz -C m6rec.new && bash m6rec.new/tpu_scripts/on_host.sh install $(quote_all "$python_version" "$extra" "$t5x") || exit 1"
