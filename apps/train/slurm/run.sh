#!/usr/bin/env bash
# Trains by torchrun on this node, or on each node of an allocation; see --help.
set -euo pipefail

usage() {
  cat << 'TEXT'
usage: run.sh [-g PROCESSES] [--nsys] CFG [key=value ...]

Trains CFG with torchrun on all GPUs of this node. On several nodes, start it once on each:
  srun --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 apps/train/slurm/run.sh my.yaml

  -g PROCESSES   on each node; by default one a GPU, or one process without a GPU
  --nsys         record an Nsight Systems profile of each node; keep the run short, such as trainer.max_steps=30
TEXT
}

fail() {
  echo "error: $1 (-h tells more)" >&2
  exit 2
}

processes= profile=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    -g) [ $# -ge 2 ] || fail "-g needs a number of processes"; processes=$2; shift 2 ;;
    -g*) processes=${1#-g}; shift ;;
    --nsys) profile=(nsys); shift ;;
    -*) fail "unknown option $1" ;;
    *) break ;;
  esac
done
[ $# -ge 1 ] || fail "no CFG given"
[ -f "$1" ] || fail "no config file $1"
if [ -z "$processes" ]; then
  processes=$(nvidia-smi --list-gpus 2> /dev/null | grep -c . || true)
  [ "$processes" -gt 0 ] || processes=1
fi
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "-g is '$processes': give a number of processes, 1 or more"

nodes=1
where=(--standalone)
if [ -n "${SLURM_STEP_ID:-}" ] && [ "${SLURM_STEP_NUM_NODES:-1}" -gt 1 ]; then
  nodes=$SLURM_STEP_NUM_NODES
  [ "$SLURM_STEP_NUM_TASKS" -eq "$nodes" ] ||
    fail "srun started this $SLURM_STEP_NUM_TASKS times on $nodes nodes: use --ntasks-per-node=1"
  head=$(scontrol show hostnames "$SLURM_STEP_NODELIST" | head -n 1)
  where=(--nnodes="$nodes" --node-rank="$SLURM_NODEID" --master-addr="$head" --master-port=$((15000 + SLURM_JOB_ID % 10000)))
elif [ "${SLURM_STEP_NUM_TASKS:-1}" -gt 1 ]; then
  fail "srun started this $SLURM_STEP_NUM_TASKS times on one node: use --ntasks-per-node=1, run.sh starts the others"
fi

if [ ${#profile[@]} -gt 0 ]; then
  command -v nsys > /dev/null || fail "--nsys: there is no nsys here: install NVIDIA Nsight Systems, or load its module"
  mkdir -p runs/nsys
  output=runs/nsys/$(basename "${1%.*}")-$(date +%Y%m%d-%H%M%S)-$(hostname -s)
  profile=(nsys profile --trace=cuda,nvtx,osrt,cudnn,cublas --output="$output")
  echo "Nsight Systems writes $output.nsys-rep"
fi

[ ! -d .venv/bin ] || PATH="$PWD/.venv/bin:$PATH"
exec "${profile[@]}" torchrun "${where[@]}" --nproc-per-node="$processes" -m s2s_train fit "$@" \
  trainer.devices="$processes" trainer.num_nodes="$nodes"
