# shellcheck shell=bash disable=SC2034  # what is set here is read by the scripts that source it
# What the scripts of this folder share: options, checks, commands on hosts. Sourced, never run.
# Hosts are TPU VMs: Ubuntu with systemd, where whoever may log in may also use sudo.

set -euo pipefail
project=${M6REC_TPU_PROJECT:-${CLOUDSDK_CORE_PROJECT:-}}
zone=${M6REC_TPU_ZONE:-${CLOUDSDK_COMPUTE_ZONE:-}}
name=${M6REC_TPU_NAME:-m6rec}
node_count=${M6REC_TPU_NODE_COUNT:-1}
dry_run=0 ssh_flags=() ARGUMENTS=()

# Which variable an option sets: to its value, to 1, or (lists) by adding the value.
declare -A VALUES=([--project]=project [--zone]=zone [--name]=name [--node-count]=node_count)
declare -A SWITCHES=([--dry-run]=dry_run)
declare -A LISTS=([--ssh-option]=ssh_flags)

slice_options() {
  cat <<'TEXT'
Which slice:
  --project ID       Default: $M6REC_TPU_PROJECT, else $CLOUDSDK_CORE_PROJECT
  --zone ZONE        such as us-east5-a. Default: $M6REC_TPU_ZONE, else $CLOUDSDK_COMPUTE_ZONE
  --name NAME        of it; several are NAME-0, NAME-1, ... Default: $M6REC_TPU_NAME, else m6rec
  --node-count N     number of slices. Default: $M6REC_TPU_NODE_COUNT, else 1
  --ssh-option FLAG  one more flag for gcloud's ssh and scp, such as --ssh-option=--internal-ip
  --dry-run          print the commands, run nothing
  --help             this text
TEXT
}

# An error that the user can mend.
fail() {
  echo "${0##*/}: $*" >&2
  exit 2
}

# Runs a command, or prints it.
run() {
  if ((dry_run)); then printf '%q ' "$@" && echo; else "$@"; fi
}

# Sets the variables of all options; what stands after -- goes into ARGUMENTS.
parse_options() {
  local option value
  while (($#)); do
    option=${1%%=*}
    case $option in
      --help | -h) usage && exit ;;
      --) ARGUMENTS=("${@:2}") && break ;;
    esac
    if [[ -n ${SWITCHES[$option]:-} ]]; then
      printf -v "${SWITCHES[$option]}" 1
      shift
      continue
    fi
    [[ -n ${VALUES[$option]:-}${LISTS[$option]:-} ]] || fail "unknown argument '$1'; see ${0##*/} --help"
    if [[ $1 == *=* ]]; then value=${1#*=}; else value=${2:-} && shift; fi
    [[ -n $value ]] || fail "$option needs a value; see ${0##*/} --help"
    shift
    local -n target=${VALUES[$option]:-${LISTS[$option]:-}}
    if [[ -n ${VALUES[$option]:-} ]]; then target=$value; else target+=("$value"); fi
  done
  [[ -n $project ]] || fail 'no project: give --project ID or set M6REC_TPU_PROJECT'
  [[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] ||
    fail "zone '$zone': give --zone or set M6REC_TPU_ZONE to one like us-east5-a (gcloud compute tpus locations list)"
  [[ $node_count =~ ^[1-9][0-9]*$ ]] || fail "--node-count '$node_count' is no number of slices"
}

# Names of the slices, one a line.
nodes() {
  if ((node_count == 1)); then echo "$name"; else seq --format="$name-%g" 0 $((node_count - 1)); fi
}

queued_resources() {
  run gcloud compute tpus queued-resources "$1" "$name" "--project=$project" "--zone=$zone" "${@:2}"
}

# on_hosts COMMAND [WORKER]: a command line on all hosts of all slices, or on one worker of each.
on_hosts() {
  local node job jobs=() status=0
  # All at once: the first hosts of a run wait only so long for the last.
  for node in $(nodes); do
    run gcloud compute tpus tpu-vm ssh "$node" "--project=$project" "--zone=$zone" \
      "--worker=${2:-all}" --quiet "${ssh_flags[@]}" "--command=$1" &
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do wait "$job" || status=$?; done
  return "$status"
}

# start_unit UNIT FOLDER WAIT NAME=VALUE ... -- ARGUMENT ...: m6rec as a unit of systemd on all hosts,
# which outlives ssh and of which there is one by its name.
start_unit() {
  local unit=$1 folder=$2 options=(--unit="$1")
  # libtpu locks memory. At SIGTERM a run saves and leaves with 143.
  options+=(--property={LimitMEMLOCK=infinity,KillMode=mixed,TimeoutStopSec=300,SuccessExitStatus=143})
  ((!$3)) || options+=(--wait)
  shift 3
  while [[ $1 != -- ]]; do options+=("--setenv=$1") && shift; done
  on_hosts "sudo systemctl reset-failed $unit 2>/dev/null
sudo systemd-run --uid=\"\$USER\" --setenv={HOME=\"\$HOME\",M6REC_DATA_DIR=\"\$HOME/m6rec-data\"} \
--working-directory=\"\$HOME/$folder\"$(printf ' %q' "${options[@]}") \
\"\$HOME/m6rec-env/bin/m6rec\"$(printf ' %q' "${@:2}")"
}
