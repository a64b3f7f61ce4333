# shellcheck shell=bash
# shellcheck disable=SC2034  # what is set here is read by the scripts that source it
# What the scripts of this folder share: options, checks, gcloud calls. Sourced, never run.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "these scripts need bash 4.4 or newer; this is ${BASH_VERSION}" >&2
  exit 2
fi

SCRIPT=$(basename "$0")
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

project=${M6REC_TPU_PROJECT:-${CLOUDSDK_CORE_PROJECT:-}}
zone=${M6REC_TPU_ZONE:-${CLOUDSDK_COMPUTE_ZONE:-}}
name=${M6REC_TPU_NAME:-m6rec}
node_count=${M6REC_TPU_NODE_COUNT:-1}
dry_run=0
ssh_flags=()
# A host that is taken away answers nothing any more: without these, ssh waits for it for hours. They
# come after the user's own, since ssh takes the first value that it is given.
patience=(-oConnectTimeout=15 -oServerAliveInterval=30 -oServerAliveCountMax=4)

# The part of --help that is the same everywhere.
slice_options() {
  cat <<'TEXT'
Which slice:
  --project ID        Google Cloud project. Default: $M6REC_TPU_PROJECT, else $CLOUDSDK_CORE_PROJECT
  --zone ZONE         for instance us-east5-a. Default: $M6REC_TPU_ZONE, else
                      $CLOUDSDK_COMPUTE_ZONE
  --name NAME         of the queued resource. Default: $M6REC_TPU_NAME, else m6rec. One slice has
                      this name, too; of several they are NAME-0, NAME-1, ...
  --node-count N      number of slices (multislice). Default: $M6REC_TPU_NODE_COUNT, else 1
  --dry-run           print the commands, run nothing
  --help              this text
TEXT
}

ssh_options() {
  cat <<'TEXT'
  --ssh-option FLAG   one more flag for gcloud's ssh and scp, for instance --ssh-option=--internal-ip or
                      --ssh-option=--strict-host-key-checking=no; may be given several times
TEXT
}

say() {
  printf '%s: %s\n' "$SCRIPT" "$*" >&2
}

# An error that the user can mend.
fail() {
  say "$*"
  exit 2
}

# Quotes one word for any POSIX shell; unlike printf %q, which writes $'...' for some characters.
quote() {
  local word=$1
  if [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
    printf '%s' "$word"
  else
    printf "'%s'" "${word//\'/\'\\\'\'}"
  fi
}

# Quotes words and joins them with spaces: a command line that a shell reads back as these words.
quote_all() {
  local separator='' word
  for word in "$@"; do
    printf '%s' "$separator"
    quote "$word"
    separator=' '
  done
}

# Runs a command, or prints it in a dry run.
run() {
  if ((dry_run)); then
    quote_all "$@"
    printf '\n'
  else
    "$@"
  fi
}

# `--name=value` to `--name value`, up to `--`; the result is in WORDS.
split_equals() {
  WORDS=()
  while (($#)); do
    case $1 in
      --)
        WORDS+=("$@")
        return
        ;;
      --ssh-option | --create-option)
        # What follows is a flag of gcloud's, which may hold a = of its own.
        WORDS+=("${@:1:2}")
        shift
        ;;
      --*=*) WORDS+=("${1%%=*}" "${1#*=}") ;;
      *) WORDS+=("$1") ;;
    esac
    if (($#)); then shift; fi
  done
}

need_value() {
  (($# >= 2)) && [[ -n $2 ]] || fail "$1 needs a value; see $SCRIPT --help"
}

unknown_argument() {
  fail "unknown argument $(quote "$1"); see $SCRIPT --help"
}

# Takes an option of slice_options or ssh_options; says in CONSUMED how many words it took.
common_option() {
  CONSUMED=2
  case $1 in
    --project) need_value "$@" && project=$2 ;;
    --zone) need_value "$@" && zone=$2 ;;
    --name) need_value "$@" && name=$2 ;;
    --node-count) need_value "$@" && node_count=$2 ;;
    --ssh-option) need_value "$@" && ssh_flags+=("$2") ;;
    --dry-run) dry_run=1 CONSUMED=1 ;;
    --help | -h)
      usage
      exit 0
      ;;
    *) return 1 ;;
  esac
}

# Of a script: takes an option of its own; says in CONSUMED how many words it took, where not two.
own_option() { return 1; }

# Takes all options. What stands after -- goes into ARGUMENTS, where a script has takes_arguments=1.
takes_arguments=0
ARGUMENTS=()
parse_options() {
  split_equals "$@"
  set -- "${WORDS[@]}"
  while (($#)); do
    if [[ $1 == -- ]] && ((takes_arguments)); then
      ARGUMENTS=("${@:2}")
      return
    fi
    CONSUMED=2
    own_option "$@" || common_option "$@" || unknown_argument "$1"
    shift "$CONSUMED"
  done
}

need_whole_number() {
  [[ $2 =~ ^[0-9]+$ ]] || fail "$1 $(quote "$2") is not a whole number"
}

check_slice() {
  [[ -n $project ]] ||
    fail 'no project: give --project ID or set M6REC_TPU_PROJECT (gcloud projects list shows yours)'
  [[ -n $zone ]] ||
    fail 'no zone: give --zone ZONE or set M6REC_TPU_ZONE (gcloud compute tpus locations list shows them)'
  [[ $zone =~ ^[a-z]+(-[a-z]+)+[0-9]+-[a-z]$ ]] ||
    fail "zone $(quote "$zone") is none: a zone looks like us-east5-a (a region and a letter)"
  [[ $name =~ ^[a-z]([a-z0-9-]{0,60}[a-z0-9])?$ ]] ||
    fail "name $(quote "$name"): use lower-case letters, digits and hyphens, a letter first (at most 62)"
  need_whole_number --node-count "$node_count"
  ((node_count >= 1)) || fail "--node-count $node_count: at least 1"
  ((dry_run)) || command -v gcloud >/dev/null ||
    fail 'gcloud is not on PATH: install the Google Cloud CLI, then run gcloud auth login'
}

# Checks gs://BUCKET or gs://BUCKET/FOLDER.
check_bucket_address() {
  [[ -n $2 ]] || fail "no bucket: give $1 gs://BUCKET/FOLDER or set M6REC_TPU_DATA"
  [[ $2 =~ ^gs://[a-z0-9][a-z0-9._-]+[a-z0-9](/[^[:space:]]*)?$ ]] ||
    fail "$1 $(quote "$2") is no bucket address: write gs://BUCKET/FOLDER"
}

check_run_name() {
  [[ $1 =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] ||
    fail "--run $(quote "$1"): use letters, digits, '.', '_' and '-' (it names a folder on the hosts)"
}

# Variables that --env named.
check_environment() {
  local variable
  for variable in "$@"; do
    [[ $variable =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || fail "--env $(quote "$variable"): write NAME=VALUE"
  done
}

# Names of the TPU VMs, one a line.
nodes() {
  local index
  if ((node_count == 1)); then
    printf '%s\n' "$name"
  else
    for ((index = 0; index < node_count; index++)); do
      printf '%s-%d\n' "$name" "$index"
    done
  fi
}

queued_resources() {
  local verb=$1
  shift
  run gcloud compute tpus queued-resources "$verb" "$name" "--project=$project" "--zone=$zone" "$@"
}

# Puts the queued resource's state into STATE: NONE when there is none. A dry run asks nothing and
# assumes $1.
read_state() {
  local errors
  if ((dry_run)); then
    queued_resources describe '--format=value(state.state)'
    STATE=$1
    return
  fi
  errors=$(mktemp)
  if STATE=$(queued_resources describe '--format=value(state.state)' 2>"$errors"); then
    rm -f "$errors"
    STATE=${STATE:-UNKNOWN}
  elif grep -qiE 'NOT_FOUND|not found' "$errors"; then
    rm -f "$errors"
    STATE=NONE
  else
    cat "$errors" >&2
    rm -f "$errors"
    return 1
  fi
}

# on_slices WORKER COMMAND: runs a command line on a worker (or all) of every slice. The far side
# runs it with the user's login shell, so its words must be quoted: see quote_all.
on_slices() {
  local node jobs=() job status=0
  if ((dry_run)); then
    for node in $(nodes); do on_slice "$node" "$1" "$2"; done
    return
  fi
  # All at once: the first hosts of a run wait only so long for the last.
  for node in $(nodes); do
    on_slice "$node" "$1" "$2" &
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do wait "$job" || status=$?; done
  return "$status"
}

# on_slice NODE WORKER COMMAND
on_slice() {
  # --quiet: without a terminal nobody answers a question about keys.
  run gcloud compute tpus tpu-vm ssh "$1" "--project=$project" "--zone=$zone" "--worker=$2" --quiet \
    "${ssh_flags[@]}" "${patience[@]/#/--ssh-flag=}" "--command=$3"
}

# on_host ARGUMENTS...: the command line that runs on_host.sh with these arguments over there.
on_host() {
  printf 'bash m6rec/tpu_scripts/on_host.sh '
  quote_all "$@"
}
