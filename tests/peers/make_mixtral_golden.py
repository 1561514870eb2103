#!/usr/bin/env python3
"""Golden files of a tiny Mixtral, by Hugging Face transformers: tests/peers/golden/mixtral.

    tests/peers/setup.sh
    .venv-peers/bin/python tests/peers/make_mixtral_golden.py            # make them anew
    .venv-peers/bin/python tests/peers/make_mixtral_golden.py --check    # remake and compare

model.safetensors, config.json   the model as transformers saves it
golden.safetensors               what it computes, in fp32:
    tokens, targets              int64 [sequences, length]; target -1: none
    logits                       [sequences, length, vocabulary]
    loss                         mean over the targets
    router.L                     [sequences * length, experts] probabilities of layer L
    gradient.NAME                of the mean loss, under the names of model.safetensors
    curve.tokens, curve.targets  int64 [steps, sequences, length]
    curve.loss                   [steps] mean loss before each step of AdamW (lr 3e-3, betas 0.9 and
                                 0.95, eps 1e-8, weight decay 0.1 but for norms, no clipping)

No top-k choice of the golden pass or of the curve is closer than MARGIN, so that a correct
implementation chooses the same experts.
"""

import argparse
import pathlib
import sys
import tempfile

import safetensors.torch
import torch
import transformers

GOLDEN = pathlib.Path(__file__).resolve().parent / "golden" / "mixtral"
SEQUENCES, LENGTH, STEPS, MARGIN = 2, 16, 20, 1e-5


def make_model():
    config = transformers.MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        sliding_window=None,
        tie_word_embeddings=False,
        output_router_logits=False,
        initializer_range=0.15,
        dtype="float32",
    )
    torch.manual_seed(1)
    model = transformers.MixtralForCausalLM._from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train()


def watch_routers(model, probabilities):
    """Puts each layer's router probabilities of the last pass into `probabilities`."""

    def hook(layer):
        def keep(_module, _inputs, output):
            probabilities[layer] = torch.softmax(output[0].detach().float(), dim=-1)

        return keep

    for i, layer in enumerate(model.model.layers):
        layer.mlp.gate.register_forward_hook(hook(i))


def check_margins(model, probabilities, what):
    k = model.config.num_experts_per_tok
    for layer, p in probabilities.items():
        ordered = p.sort(dim=-1, descending=True).values
        margin = (ordered[:, k - 1] - ordered[:, k]).min().item()
        if margin < MARGIN:
            sys.exit(f"{what}: layer {layer} has a top-k margin of {margin}; choose another seed")


def random_batch(steps=()):
    shape = (*steps, SEQUENCES, LENGTH)
    tokens = torch.randint(0, 64, shape)
    targets = torch.randint(0, 64, shape)
    targets[torch.rand(shape) < 0.1] = -1
    return tokens, targets


def mean_loss(model, tokens, targets):
    logits = model(input_ids=tokens).logits
    loss = torch.nn.functional.cross_entropy(
        logits.view(-1, logits.shape[-1]), targets.view(-1), ignore_index=-1
    )
    return logits, loss


def hub_gradients(model):
    """Gradients under the names and shapes of the saved file, where an expert's matrices are apart."""
    width = model.config.intermediate_size
    gradients = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if ".mlp.experts." in name:
            prefix = name.split(".mlp.experts.")[0] + ".block_sparse_moe.experts."
            for e in range(gradient.shape[0]):
                if name.endswith("gate_up_proj"):
                    gradients[f"{prefix}{e}.w1.weight"] = gradient[e, :width].clone()
                    gradients[f"{prefix}{e}.w3.weight"] = gradient[e, width:].clone()
                else:
                    gradients[f"{prefix}{e}.w2.weight"] = gradient[e].clone()
        else:
            gradients[name.replace(".mlp.gate.", ".block_sparse_moe.gate.")] = gradient.clone()
    return gradients


def train(model, probabilities, tokens, targets):
    norms = [p for n, p in model.named_parameters() if "norm" in n]
    others = [p for n, p in model.named_parameters() if "norm" not in n]
    optimizer = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}],
        lr=3e-3, betas=(0.9, 0.95), eps=1e-8,
    )  # fmt: skip
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        _, loss = mean_loss(model, tokens[step], targets[step])
        check_margins(model, probabilities, f"step {step}")
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


def make(folder):
    torch.set_num_threads(1)
    model = make_model()
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    saved = safetensors.torch.load_file(folder / "model.safetensors")

    probabilities = {}
    watch_routers(model, probabilities)
    tokens, targets = random_batch()
    # A few batches again and again, so that there is something to learn.
    curve_tokens, curve_targets = (t.repeat(STEPS // 4, 1, 1) for t in random_batch((4,)))
    logits, loss = mean_loss(model, tokens, targets)
    loss.backward()
    check_margins(model, probabilities, "golden pass")
    golden = {"tokens": tokens, "targets": targets, "logits": logits.detach().contiguous(),
              "loss": loss.detach().reshape(1)}  # fmt: skip
    golden |= {f"router.{layer}": p for layer, p in probabilities.items()}
    gradients = hub_gradients(model)
    assert {n: g.shape for n, g in gradients.items()} == {n: t.shape for n, t in saved.items()}
    golden |= {f"gradient.{name}": g for name, g in gradients.items()}
    golden["curve.tokens"], golden["curve.targets"] = curve_tokens, curve_targets
    golden["curve.loss"] = train(model, probabilities, curve_tokens, curve_targets)
    safetensors.torch.save_file(golden, folder / "golden.safetensors")


def check():
    worst = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        made = pathlib.Path(temporary)
        make(made)
        for file in ["model.safetensors", "golden.safetensors"]:
            ours = safetensors.torch.load_file(GOLDEN / file)
            theirs = safetensors.torch.load_file(made / file)
            if ours.keys() != theirs.keys():
                sys.exit(f"{file}: the names differ: {ours.keys() ^ theirs.keys()}")
            for name, value in theirs.items():
                scale = value.abs().max().clamp_min(1e-30)
                error = ((ours[name] - value).abs().max() / scale).item()
                worst = max(worst, error)
                if error > 1e-5:
                    sys.exit(f"{file}: {name} differs by {error} of its largest value")
    print(f"the golden files agree with transformers {transformers.__version__}: {worst:.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="remake and compare, write nothing")
    if parser.parse_args().check:
        check()
    else:
        GOLDEN.mkdir(parents=True, exist_ok=True)
        make(GOLDEN)
