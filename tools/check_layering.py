#!/usr/bin/env python3
"""Checks the arrows between folders, by include lines, and that every source file is built.

Usage: tools/check_layering.py [repository root]
Prints one line a violation and exits 1 when there is any.
"""

import pathlib
import re
import sys

# folder -> folders it may include from (itself is implied). The longest matching prefix counts.
ARROWS = {
    "base": [],
    "proto": ["base"],
    "parallel/layout": ["base"],
    "parallel": ["base", "parallel"],
    "trainer/catalog": ["base", "proto", "parallel/layout", "trainer/recipe", "trainer/metrics"],
    "trainer/data": ["base", "proto"],
    "trainer/metrics": ["base", "proto"],
    "trainer/recipe": ["base", "proto"],
    "trainer/checkpoint/format": ["base", "proto", "trainer/catalog"],
    "trainer/checkpoint/convert": ["base", "proto", "trainer/catalog", "trainer/checkpoint/format"],
    # The trainer knows the cluster through two headers of its client.
    "trainer": ["base", "proto", "parallel", "trainer", "scheduler/client/coordinator_client.h",
                "scheduler/client/snapshot_peer.h"],
    "scheduler/certs": ["base", "proto"],
    "scheduler/client": ["base", "proto", "scheduler/certs", "trainer/checkpoint/format"],
    "scheduler/state": ["base", "proto", "parallel/layout", "trainer/catalog"],
    "scheduler": ["base", "proto", "parallel/layout", "trainer/catalog", "trainer/data",
                  "trainer/checkpoint/format", "scheduler"],
    "launcher": ["base", "proto", "parallel", "trainer", "scheduler", "launcher"],
    "bench": ["base", "proto", "parallel", "trainer", "scheduler", "launcher"],
    "tests": ["base", "proto", "parallel", "trainer", "scheduler", "launcher", "tests"],
}

# Pure folders: no tensors, no MPI, no gRPC.
PURE = ["base", "proto", "parallel/layout", "trainer/catalog", "trainer/data", "trainer/metrics",
        "trainer/recipe", "trainer/checkpoint/format", "trainer/checkpoint/convert",
        "scheduler/state"]
IMPURE_INCLUDE = re.compile(r"^(ATen/|c10/|torch/|mpi\.h|grpcpp/|grpc/|.*\.grpc\.pb\.h)")
INCLUDE = re.compile(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', re.M)


def folder_of(path, table):
    """The longest key of `table` that holds `path`, or None."""
    best = None
    for key in table:
        if path == key or path.startswith(key + "/"):
            if best is None or len(key) > len(best):
                best = key
    return best


def check_includes(root, path):
    text = (root / path).read_text(errors="replace")
    home = folder_of(path, ARROWS)
    pure = folder_of(path, PURE) is not None
    for include in INCLUDE.findall(text):
        if pure and IMPURE_INCLUDE.match(include):
            yield f"{path}: a pure folder includes <{include}>"
        if include.startswith("torch/torch.h"):
            yield f"{path}: <torch/torch.h> costs half a minute a file; include ATen headers"
        target = folder_of(include, ARROWS)
        if target is None or "/" not in include:
            continue
        allowed = ARROWS[home] + [home]
        if not any(include == a or include.startswith(a + "/") for a in allowed):
            yield f"{path}: {home} may not include {include}"


def check_listed(root, path, cmake_text):
    name = pathlib.PurePath(path).name
    if not re.search(r"(?<![\w.])" + re.escape(name) + r"(?![\w.])", cmake_text):
        yield f"{path}: no CMakeLists.txt or cmake/*.cmake names it, so it is never built"


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    files = [str(p.relative_to(root)) for top in {a.split("/")[0] for a in ARROWS}
             for p in (root / top).rglob("*") if p.suffix in (".h", ".cc")]
    cmake_text = "\n".join(p.read_text() for top in {a.split("/")[0] for a in ARROWS}
                           for p in (root / top).rglob("CMakeLists.txt"))
    cmake_text += "\n".join(p.read_text() for p in (root / "cmake").glob("*.cmake"))
    problems = []
    for path in sorted(files):
        problems += check_includes(root, path)
        if path.endswith(".cc"):
            problems += check_listed(root, path, cmake_text)
    print("\n".join(problems) if problems else f"layering: {len(files)} files are in order")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
