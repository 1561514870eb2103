#!/usr/bin/env python3
"""Writes the golden files of tests/trainer/data/golden with Megatron's own writer.

The writer is megatron/core/datasets/indexed_dataset.py of the pinned megatron-core wheel, fetched
from PyPI. It imports torch, but only the readers use it: a stub stands in. Needs numpy:

    python3 -m venv .venv-golden
    .venv-golden/bin/pip install numpy
    .venv-golden/bin/python tests/peers/make_megatron_golden.py

The files are committed; run this only to make them anew. tests/trainer/data/megatron_golden_test.cc
knows the same documents.
"""

import importlib
import pathlib
import subprocess
import sys
import tempfile
import types
import zipfile

import numpy

WHEEL = "megatron-core==0.16.1"
MODULES = ["datasets/indexed_dataset.py", "datasets/object_storage_utils.py", "msc_utils.py"]
GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "trainer" / "data" / "golden"


def load_writer(folder):
    """Megatron's indexed_dataset module, without torch and without the rest of Megatron."""
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", folder, WHEEL],
        check=True,
    )
    (wheel,) = pathlib.Path(folder).glob("megatron_core-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for module in MODULES:
            archive.extract("megatron/core/" + module, folder)
    torch = types.ModuleType("torch")
    torch.Tensor = type("Tensor", (), {})
    torch.utils = types.SimpleNamespace(data=types.SimpleNamespace(Dataset=object))
    utils = types.ModuleType("megatron.core.utils")
    utils.log_single_rank = lambda *args, **kwargs: None
    sys.modules.update({"torch": torch, "megatron.core.utils": utils})
    sys.path.insert(0, folder)
    return importlib.import_module("megatron.core.datasets.indexed_dataset")


def documents(limit):
    """Documents of sequences of tokens: document d has d % 3 sequences, some of them empty."""
    made = []
    for d in range(12):
        sequences = [
            [(7919 * d + 104729 * s + 613 * t) % limit for t in range((5 * d + 3 * s) % 11)]
            for s in range(d % 3)
        ]
        made.append(sequences)
    return made


def write(module, name, dtype, limit):
    builder = module.IndexedDatasetBuilder(str(GOLDEN / (name + ".bin")), dtype=dtype)
    for sequences in documents(limit):
        tokens = [token for sequence in sequences for token in sequence]
        builder.add_document(tokens, [len(sequence) for sequence in sequences])
    builder.finalize(str(GOLDEN / (name + ".idx")))


def main():
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        module = load_writer(folder)
        write(module, "megatron_uint16", module.DType.optimal_dtype(50000), 50000)
        write(module, "megatron_int32", module.DType.optimal_dtype(200000), 200000)
        write(module, "megatron_uint8", numpy.uint8, 256)
    for path in sorted(GOLDEN.glob("megatron_*")):
        print(path.name, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
