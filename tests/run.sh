#!/usr/bin/env bash
# Does all set-up and passes the tests. Usage:
#   tests/run.sh                 the default suite: every label but peers
#   tests/run.sh -L fast         only a label (arguments go to ctest)
#   SANITIZE=1 tests/run.sh      also the sanitizer builds and the replay of the fuzz seeds
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools/bootstrap.sh --tests
jobs=$(nproc)
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# Builds a preset quietly: the end of the log only when it fails.
build() {
  local preset=$1
  shift
  printf '[tests] building %s\n' "$preset" >&2
  { cmake --preset "$preset" && cmake --build --preset "$preset" -j "$jobs" "$@"; } >"$log" 2>&1 || {
    tail -n 60 "$log" >&2
    exit 1
  }
}

tools/check_layering.py
if [ "${SANITIZE:-0}" = 1 ]; then
  for preset in tsan asan-ubsan; do
    build "$preset" --target sanitized_tests
    ctest --test-dir "build/$preset" -L sanitize --output-on-failure -j "$jobs"
  done
fi
build release
if [ $# -eq 0 ]; then
  set -- -LE peers
fi
exec ctest --test-dir build/release --output-on-failure -j "$jobs" "$@"
