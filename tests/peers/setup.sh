#!/usr/bin/env bash
# Makes .venv-peers: the Python libraries that the tests of label `peers` compare with (about 6 GB, a
# few minutes). Idempotent. Usage: tests/peers/setup.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

PINS=(torch==2.15.0 transformers==5.23.0 safetensors==0.8.0)

stamp=".venv-peers/.pins-$(printf '%s\n' "${PINS[@]}" | sha256sum | cut -c1-16)"
[ -e "$stamp" ] && exit 0
python3 -m venv .venv-peers
.venv-peers/bin/pip install -q --disable-pip-version-check "${PINS[@]}"
touch "$stamp"
