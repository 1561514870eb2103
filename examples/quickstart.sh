#!/usr/bin/env bash
# From a fresh clone to a trained model: installs, builds, prepares a corpus of English text, trains
# a small mixture-of-experts model with two expert-parallel workers, and writes a sample.
# Run it again to go on from where it stopped. Usage: examples/quickstart.sh [--set key=value ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== %s\n' "$*" >&2; }

say 'Packages and LibTorch'
tools/bootstrap.sh

say 'Build'
cmake --preset release >/dev/null
cmake --build --preset release -j "$(nproc)" --target moesaic moesaic-worker

say 'Corpus'
examples/corpus.sh

say 'Training (kill -9 a moesaic-worker while it runs, and watch)'
build/release/bin/moesaic run -f configs/quickstart.yaml "$@"

say 'A sample'
build/release/bin/moesaic generate --checkpoint runs/quickstart/checkpoints \
  --prompt 'And God said unto' --tokens 80 --temperature 0.8 --top-p 0.9 --seed 1
