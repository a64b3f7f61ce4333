#!/usr/bin/env bash
# Deletes the queued resource with its slices and their disks. What lies in buckets stays.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<TEXT
Usage: delete.sh [options]

Deletes the queued resource, whatever its state, and its slices with their disks.

$(slice_options)
TEXT
}

parse_options "$@"
# --force: running nodes first, then the request; without it an ACTIVE one is refused.
queued_resources delete --force --quiet
