#!/usr/bin/env bash
# Times training steps of configs/bench/ in fp32 and bf16, on 1 and 2 ranks of one thread, beside the
# floor of their matrix products. Takes a few minutes; wants a quiet machine. Needs the release build.
# Usage: bench/train.sh [arguments of moesaic-train-bench, such as --steps 20]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bench=build/release/bin/moesaic-train-bench
[ -x "$bench" ] || { echo "train.sh: build it first: cmake --build --preset release" >&2; exit 1; }
root=()
[ "$(id -u)" -eq 0 ] && root=(--allow-run-as-root)
for job in coarse fine; do
  for precision in fp32 bf16; do
    for ranks in 1 2; do
      OMP_NUM_THREADS=1 mpirun "${root[@]}" -n "$ranks" --oversubscribe --bind-to none \
        --mca btl self,vader "$bench" --job "configs/bench/$job.yaml" --precision "$precision" "$@"
    done
  done
done
