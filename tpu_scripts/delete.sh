#!/usr/bin/env bash
# Deletes the queued resource with its slices. What lies in buckets stays.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<TEXT
Usage: delete.sh [options]

Deletes the queued resource, whatever its state, and its slices with their disks. What lies in
buckets stays. When there is nothing to delete, that is no error.

$(slice_options)
TEXT
}

parse_options "$@"
check_slice

read_state ACTIVE
if [[ $STATE == NONE ]]; then
  say "there is no $name in $zone; nothing was deleted"
else
  # --force: running nodes first, then the request; without it an ACTIVE one is refused.
  queued_resources delete --force --quiet
fi
