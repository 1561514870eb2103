#!/usr/bin/env bash
# The manifests of examples/kubernetes fit the schemas of Kubernetes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
if [ ! -e .venv-kubernetes/.done ]; then
  python3 -m venv .venv-kubernetes
  .venv-kubernetes/bin/pip install -q --disable-pip-version-check kubernetes-validate==1.37.0
  touch .venv-kubernetes/.done
fi
exec .venv-kubernetes/bin/kubernetes-validate --strict examples/kubernetes/*.yaml
