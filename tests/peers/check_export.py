#!/usr/bin/env python3
"""Loads our exports in Hugging Face transformers: their logits are those of the golden models.

    tests/peers/setup.sh
    .venv-peers/bin/python tests/peers/check_export.py build/release/bin/moesaic

Each golden model (tests/peers/make_model_goldens.py) is imported, exported as f32, bf16 and in many
files, and loaded by transformers; f32 must give the golden logits, bf16 those of the rounded
weights. A model with experts that is made of the golden Llama must give the Llama's, and a
model that EvoMoE trains the loss that our validation gives.
"""

import argparse
import json
import pathlib
import struct
import subprocess
import tempfile

import numpy
import safetensors.torch
import torch
import transformers

GOLDEN = pathlib.Path(__file__).resolve().parent / "golden"
ARCHITECTURES = ["mixtral", "qwen3_moe", "dots1", "llama"]
TOLERANCE = 1e-5

UPCYCLED = """
name: upcycled
model:
  {layers: 2, hidden: 32, heads: 4, kv_heads: 2, sequence: 64, vocabulary: 64, rope_base: 10000,
   norm_epsilon: 1.0e-5, moe: {experts: 4, active: 2, expert_width: 48}}
data: {train: [{path: none}]}
train: {steps: 10, global_batch: 4, micro_batch: 2}
"""

EVOMOE = """
name: evomoe
model:
  {{layers: 2, hidden: 32, heads: 4, sequence: 32, vocabulary: 64, qk_norm: true,
   moe: {{experts: 4, active: 1, expert_width: 48}}}}
recipe: {{preset: evomoe, experts: {{spawn: {{step: 4}}}}}}
data: {{train: [{{path: {folder}/corpus}}], validation: [{{path: {folder}/corpus}}]}}
train:
  {{steps: 8, global_batch: 4, micro_batch: 2, validate_samples: 0,
   optimizer: {{adamw: {{lr: 1.0e-2}}}}}}
run: {{dir: {folder}/run}}
"""


def moesaic(program, *arguments):
    done = subprocess.run([program, *map(str, arguments), "-o", "json"], capture_output=True,
                          text=True)
    if done.returncode != 0:
        raise SystemExit(f"moesaic {' '.join(map(str, arguments))}: {done.stderr}")
    return json.loads(done.stdout)


def logits(folder, tokens):
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    problems = {key: value for key, value in report.items() if value}
    assert not problems, f"{folder}: {problems}"
    with torch.no_grad():
        return model.eval()(input_ids=tokens).logits


def error(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def rounded(folder, to):
    """The golden model with its weights rounded to bf16."""
    to.mkdir()
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file(
        {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()},
        to / "model.safetensors", metadata={"format": "pt"},
    )  # fmt: skip
    (to / "config.json").write_text((folder / "config.json").read_text())
    return to


def check(program, architecture, scratch):
    golden = safetensors.torch.load_file(GOLDEN / architecture / "golden.safetensors")
    moesaic(program, "ckpt", "import", "--from", GOLDEN / architecture, "--to", scratch / "step")
    worst = 0.0
    for name, flags, source in [
        ("f32", ["--dtype", "f32"], GOLDEN / architecture),
        ("files", ["--dtype", "f32", "--max-file", "20kb"], GOLDEN / architecture),
        ("bf16", ["--dtype", "bf16"], rounded(GOLDEN / architecture, scratch / "rounded")),
    ]:
        exported = moesaic(program, "ckpt", "export", scratch / "step", "--to", scratch / name,
                           *flags)
        assert exported["architecture"] == architecture, exported
        assert (exported["files"] > 1) == (name == "files"), exported
        theirs = golden["logits"] if name != "bf16" else logits(source, golden["tokens"])
        worst = max(worst, error(logits(scratch / name, golden["tokens"]), theirs))
        assert worst < TOLERANCE, f"{architecture}, {name}: logits differ by {worst}"
    print(f"{architecture}: transformers computes the golden logits of our export: {worst:.1e}")


def check_upcycled(program, scratch):
    golden = safetensors.torch.load_file(GOLDEN / "llama" / "golden.safetensors")
    (scratch / "job.yaml").write_text(UPCYCLED)
    moesaic(program, "ckpt", "upcycle", "--from", GOLDEN / "llama", "-f", scratch / "job.yaml",
            "--to", scratch / "upcycled")  # fmt: skip
    exported = moesaic(program, "ckpt", "export", scratch / "upcycled", "--to", scratch / "mixtral",
                       "--dtype", "f32")  # fmt: skip
    assert exported["architecture"] == "mixtral", exported
    worst = error(logits(scratch / "mixtral", golden["tokens"]), golden["logits"])
    assert worst < TOLERANCE, f"upcycled: logits differ by {worst}"
    print(f"a Llama that was upcycled computes in transformers what it did: {worst:.1e}")


def write_corpus(path):
    """Megatron's indexed format: random documents of as many tokens as a sample has."""
    tokens = numpy.random.default_rng(1).integers(0, 64, (16, 33), dtype=numpy.uint16)
    documents, length = tokens.shape
    path.with_suffix(".bin").write_bytes(tokens.tobytes())
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, documents, documents + 1)
    index += numpy.full(documents, length, numpy.int32).tobytes()
    index += (2 * length * numpy.arange(documents, dtype=numpy.int64)).tobytes()
    index += numpy.arange(documents + 1, dtype=numpy.int64).tobytes()
    path.with_suffix(".idx").write_bytes(index)
    return torch.from_numpy(tokens.astype(numpy.int64))


def check_evomoe(program, scratch):
    """After its spawn and in its open gate, the model is what our validation says of it."""
    tokens = write_corpus(scratch / "corpus").flatten()
    (scratch / "job.yaml").write_text(EVOMOE.format(folder=scratch))
    moesaic(program, "run", "-f", scratch / "job.yaml")
    checkpoint = scratch / "run/checkpoints"
    ours = moesaic(program, "eval", "--checkpoint", checkpoint)["validation_loss"]
    exported = moesaic(program, "ckpt", "export", checkpoint, "--to", scratch / "hf", "--dtype", "f32")
    assert exported["architecture"] == "qwen3_moe", exported
    samples = torch.stack([tokens[at:at + 33] for at in range(0, len(tokens) - 32, 32)])
    theirs = torch.nn.functional.cross_entropy(
        logits(scratch / "hf", samples[:, :-1]).flatten(0, 1), samples[:, 1:].flatten()
    ).item()  # fmt: skip
    assert abs(ours - theirs) < 1e-5, f"evomoe: a loss of {ours} here, of {theirs} in transformers"
    print(f"evomoe: transformers computes the loss of our validation: {abs(ours - theirs):.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("program")
    program = parser.parse_args().program
    torch.set_num_threads(1)
    for architecture in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as temporary:
            check(program, architecture, pathlib.Path(temporary))
    with tempfile.TemporaryDirectory() as temporary:
        check_upcycled(program, pathlib.Path(temporary))
    with tempfile.TemporaryDirectory() as temporary:
        check_evomoe(program, pathlib.Path(temporary))
