#!/usr/bin/env bash
# Makes .venv-tensorboard with TensorBoard, whose reader needs no TensorFlow. Idempotent.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
[ -e .venv-tensorboard/.done ] && exit 0
python3 -m venv .venv-tensorboard
.venv-tensorboard/bin/pip install -q --disable-pip-version-check tensorboard==2.21.0
touch .venv-tensorboard/.done
