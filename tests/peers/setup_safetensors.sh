#!/usr/bin/env bash
# Makes .venv-safetensors with the reference safetensors library, which needs no torch. Idempotent.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
[ -e .venv-safetensors/.done ] && exit 0
python3 -m venv .venv-safetensors
.venv-safetensors/bin/pip install -q --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
touch .venv-safetensors/.done
