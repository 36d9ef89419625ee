#!/usr/bin/env bash
# A shell, or a command, on a compute node; see --help.
set -euo pipefail

usage() {
  cat << 'TEXT'
usage: get_interactive_node.sh [-g GPUS] [-c CORES] [-t TIME] [-A ACCOUNT] [-p PARTITION] [-- COMMAND ...]

Opens a shell on one node of the cluster, or runs COMMAND there.

  -g GPUS        default 1; 0: none
  -c CORES       default 10 for each GPU, 2 without
  -t TIME        default 2:00:00
  -A ACCOUNT     SLURM's account
  -p PARTITION   SLURM's partition

In it, run.sh trains on all of its GPUs: apps/train/slurm/run.sh my.yaml
TEXT
}

fail() {
  echo "error: $1 (-h tells more)" >&2
  exit 2
}

[ "${1:-}" != --help ] || { usage; exit 0; }
gpus=1 cores= time=2:00:00 account= partition=
while getopts :g:c:t:A:p:h option; do
  case $option in
    g) gpus=$OPTARG ;;
    c) cores=$OPTARG ;;
    t) time=$OPTARG ;;
    A) account=$OPTARG ;;
    p) partition=$OPTARG ;;
    h) usage; exit 0 ;;
    :) fail "-$OPTARG needs a value" ;;
    *) fail "unknown option -$OPTARG" ;;
  esac
done
shift $((OPTIND - 1))

[[ $gpus =~ ^[0-9]+$ ]] || fail "-g is '$gpus': give a number of GPUs"
[ -n "$cores" ] || cores=$((gpus > 0 ? 10 * gpus : 2))
[[ $cores =~ ^[1-9][0-9]*$ ]] || fail "-c is '$cores': give a number of cores"
command -v srun > /dev/null || fail "there is no srun here: run this on the cluster's login node"
[ $# -gt 0 ] || set -- bash -l

options=(--job-name=interactive --nodes=1 --ntasks=1 --cpus-per-task="$cores" --time="$time")
[ "$gpus" -eq 0 ] || options+=(--gpus-per-node="$gpus")
[ -z "$account" ] || options+=(--account="$account")
[ -z "$partition" ] || options+=(--partition="$partition")
# By the name `interactive` Lightning knows that the run starts its processes itself, not srun.
exec srun "${options[@]}" --pty "$@"
