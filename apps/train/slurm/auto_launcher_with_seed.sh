#!/usr/bin/env bash
# Submits jobs that run one after the other, each with a data seed of its own; see --help.
set -euo pipefail

usage() {
  cat << 'TEXT'
usage: auto_launcher_with_seed.sh -n N [--SBATCH-OPTION=VALUE ...] JOB.sub [key=value ...]

Submits JOB.sub N times. Each job starts when the one before has ended, however it ended, and goes on from its
checkpoint. Each has a fresh random S2S_DATA_SEED in its environment, which JOB.sub gives to all processes of the run as
data.train_ds.shard_seed: data parallel ranks share the data out in another order in each job, tensor parallel ranks
read the same. Prints job ids and seeds.

  -n N                 jobs, 1 or more
  --OPTION=VALUE       for sbatch, such as --time=2:00:00 --account=speech
  key=value            config keys for the run

example: auto_launcher_with_seed.sh -n8 --time=8:00:00 apps/train/slurm/s2s_tinyllama_repro.sub trainer.max_steps=50000
TEXT
}

fail() {
  echo "error: $1 (-h tells more)" >&2
  exit 2
}

jobs=
options=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    -n) [ $# -ge 2 ] || fail "-n needs a number of jobs"; jobs=$2; shift 2 ;;
    -n*) jobs=${1#-n}; shift ;;
    --?*=*) options+=("$1"); shift ;;
    -*) fail "unknown option $1: sbatch's are given as --OPTION=VALUE" ;;
    *) break ;;
  esac
done

[[ $jobs =~ ^[1-9][0-9]*$ ]] || fail "-n is '$jobs': give the number of jobs, 1 or more"
[ $# -ge 1 ] || fail "no JOB.sub given"
script=$1
shift
[ -f "$script" ] || fail "no job script $script"
for override in "$@"; do
  [[ $override == [!-]*=* ]] || fail "'$override' isn't key=value; options of sbatch come before $script"
done
command -v sbatch > /dev/null || fail "there is no sbatch here: run this on the cluster's login node"

# A job that runs out of time leaves the rest to the next one, with its own seed.
[ "$jobs" -eq 1 ] || set -- exp_manager.requeue=false "$@"
previous=
for ((number = 1; number <= jobs; number++)); do
  seed=$(($(od -An -N4 -tu4 /dev/urandom) & 0x7fffffff))
  # Not --export=ALL,NAME=VALUE: sbatch then has the node load the user's login shell.
  id=$(S2S_DATA_SEED=$seed sbatch --parsable --export=ALL ${previous:+--dependency=afterany:$previous} \
    "${options[@]}" "$script" "$@") || fail "sbatch refused job $number of $jobs of $script"
  id=${id%%;*} # a cluster's name may follow
  echo "job $id, data seed $seed${previous:+, after $previous}"
  previous=$id
done
