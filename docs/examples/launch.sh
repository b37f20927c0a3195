#!/usr/bin/env bash
# Runs a script in several processes of this machine, which find each other over the
# loopback interface. All of them end if one fails.
#
#   ./launch.sh 2 data_parallel.py --steps 20
set -euo pipefail

processes=$1
script=$2
shift 2
port=${PORT:-$((20000 + RANDOM % 20000))}

# On a machine with GPUs, give each process its own: CUDA_VISIBLE_DEVICES=$i.
workers=()
for ((i = 0; i < processes; i++)); do
  "${PYTHON:-python}" "$script" --coordinator "127.0.0.1:$port" \
    --processes "$processes" --process "$i" "$@" &
  workers+=($!)
done
trap 'kill "${workers[@]}" 2>/dev/null || true' EXIT

for _ in "${workers[@]}"; do
  wait -n
done
