"""Files pass both ways between Moesaic and the reference safetensors library.

A tiny Mixtral folder written by the library is imported with `moesaic ckpt import`; the shard files
of the checkpoint are then read by the library and compared tensor by tensor.

Usage: check_safetensors.py MOESAIC_PROGRAM
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

LAYERS, EXPERTS, HIDDEN, WIDTH, VOCABULARY = 2, 3, 8, 6, 16
CONFIG = {
    "model_type": "mixtral", "hidden_act": "silu", "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": WIDTH, "num_local_experts": EXPERTS, "num_experts_per_tok": 2,
    "vocab_size": VOCABULARY, "max_position_embeddings": 32, "rope_theta": 1e6,
    "rms_norm_eps": 1e-5, "sliding_window": None, "tie_word_embeddings": False,
}


def mixtral_tensors(random):
    def draw(*shape):
        return random.standard_normal(shape).astype(np.float16)

    tensors = {
        "model.embed_tokens.weight": draw(VOCABULARY, HIDDEN),
        "model.norm.weight": draw(HIDDEN),
        "lm_head.weight": draw(VOCABULARY, HIDDEN),
    }
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for name, shape in {
            "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
            "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
            "self_attn.v_proj": (HIDDEN // 2, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
            "block_sparse_moe.gate": (EXPERTS, HIDDEN),
        }.items():
            tensors[f"{at}{name}.weight"] = draw(*shape)
        for expert in range(EXPERTS):
            e = f"{at}block_sparse_moe.experts.{expert}."
            tensors[f"{e}w1.weight"] = draw(WIDTH, HIDDEN)
            tensors[f"{e}w2.weight"] = draw(HIDDEN, WIDTH)
            tensors[f"{e}w3.weight"] = draw(WIDTH, HIDDEN)
    return tensors


def expected_objects(tensors):
    def rows(*names):
        parts = [tensors[f"{name}.weight"] for name in names]
        return np.concatenate(parts).astype(np.float32)

    objects = {"embedding": rows("model.embed_tokens"), "norm": rows("model.norm"),
               "head": rows("lm_head")}
    for layer in range(LAYERS):
        at, to = f"model.layers.{layer}.", f"layers.{layer}."
        objects[to + "attention_norm"] = rows(at + "input_layernorm")
        objects[to + "feed_forward_norm"] = rows(at + "post_attention_layernorm")
        objects[to + "attention.qkv"] = rows(*(f"{at}self_attn.{x}_proj" for x in "qkv"))
        objects[to + "attention.output"] = rows(at + "self_attn.o_proj")
        objects[to + "moe.router"] = rows(at + "block_sparse_moe.gate")
        for expert in range(EXPERTS):
            e = f"{at}block_sparse_moe.experts.{expert}."
            objects[f"{to}moe.experts.{expert}.gate_up"] = rows(e + "w1", e + "w3")
            objects[f"{to}moe.experts.{expert}.down"] = rows(e + "w2")
    return {f"master/{name}": values for name, values in objects.items()}


def main():
    program = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        source, target = pathlib.Path(folder, "hf"), pathlib.Path(folder, "out")
        source.mkdir()
        tensors = mixtral_tensors(np.random.default_rng(1))
        (source / "config.json").write_text(json.dumps(CONFIG))
        save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
        done = subprocess.run([program, "ckpt", "import", "--from", source, "--to", target,
                               "-o", "json"], check=True, capture_output=True, text=True)
        step = pathlib.Path(json.loads(done.stdout)["path"])
        subprocess.run([program, "ckpt", "verify", step], check=True)

        found = {}
        for path in sorted(step.glob("*.safetensors")):
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():
                    assert name not in found, name
                    found[name] = file.get_tensor(name)
        expected = expected_objects(tensors)
        assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
        for name, values in expected.items():
            assert found[name].dtype == np.float32, name
            np.testing.assert_array_equal(found[name], values, err_msg=name)
        print(f"{len(found)} tensors are equal")


if __name__ == "__main__":
    main()
