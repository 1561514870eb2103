#!/usr/bin/env python3
"""Golden files of tiny models, by Hugging Face transformers: tests/peers/golden/ARCHITECTURE.

    tests/peers/setup.sh
    .venv-peers/bin/python tests/peers/make_model_goldens.py [ARCHITECTURE...]   # make anew
    .venv-peers/bin/python tests/peers/make_model_goldens.py --check   # remake and compare

model.safetensors, config.json   the model as transformers saves it
golden.safetensors               what it computes, in fp32:
    tokens, targets              int64 [sequences, length]; target -1: none
    logits                       [sequences, length, vocabulary]
    loss                         mean over the targets
    router.L                     [sequences * length, experts] scores of layer L (softmax or
                                 sigmoid)
    gradient.NAME                of the mean loss, under the names of model.safetensors
    curve.tokens, curve.targets  int64 [steps, sequences, length]
    curve.loss                   [steps] mean loss before each step of AdamW (lr 3e-3, betas 0.9 and
                                 0.95, eps 1e-8, weight decay 0.1 but for norms, no clipping)

No choice of experts or groups of the golden pass or of the curve is closer than MARGIN, so that a
correct implementation chooses the same.
"""

import argparse
import pathlib
import sys
import tempfile

import safetensors.torch
import torch
import transformers

GOLDEN = pathlib.Path(__file__).resolve().parent / "golden"
SEQUENCES, LENGTH, STEPS, MARGIN = 2, 16, 20, 1e-5

COMMON = dict(
    vocab_size=64,
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.15,
    tie_word_embeddings=False,
    dtype="float32",
)

# By architecture: the seed of its weights, its class and what its config says.
MODELS = {
    "mixtral": (1, transformers.MixtralForCausalLM, dict(
        COMMON, num_hidden_layers=2, intermediate_size=48, num_local_experts=4,
        num_experts_per_tok=2, rope_theta=10000.0, rms_norm_eps=1e-5, sliding_window=None,
        output_router_logits=False)),
    "qwen3_moe": (1, transformers.Qwen3MoeForCausalLM, dict(
        COMMON, num_hidden_layers=3, head_dim=12, intermediate_size=40, moe_intermediate_size=20,
        num_experts=6, num_experts_per_tok=2, norm_topk_prob=True, mlp_only_layers=[0],
        rope_theta=500.0, rms_norm_eps=1e-6, output_router_logits=False)),
    "dots1": (1, transformers.Dots1ForCausalLM, dict(
        COMMON, num_hidden_layers=3, head_dim=12, intermediate_size=40, moe_intermediate_size=8,
        n_routed_experts=12, n_shared_experts=2, num_experts_per_tok=4, n_group=3, topk_group=2,
        first_k_dense_replace=1, norm_topk_prob=True, routed_scaling_factor=2.5, rope_theta=500.0,
        rms_norm_eps=1e-6, sliding_window=None)),
    "llama": (1, transformers.LlamaForCausalLM, dict(
        COMMON, num_hidden_layers=2, intermediate_size=48, rope_theta=10000.0, rms_norm_eps=1e-5)),
}  # fmt: skip


def make_model(architecture):
    seed, model_class, values = MODELS[architecture]
    torch.manual_seed(seed)
    experts = {"experts_implementation": "eager"} if architecture != "llama" else {}
    model = model_class._from_config(
        model_class.config_class(**values), attn_implementation="eager", **experts
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.add_(0.1 * torch.randn_like(buffer))
    return model.train()


class Routers:
    """The scores of each layer with experts, of the last pass, and how close its choices were."""

    def __init__(self, model):
        self.scores, self.margins = {}, {}
        for index, layer in enumerate(model.model.layers):
            if hasattr(layer.mlp, "gate"):
                layer.mlp.gate.register_forward_hook(self.hook(index))

    def hook(self, layer):
        def keep(gate, _inputs, output):
            logits = output[0].detach().float()
            bias = getattr(gate, "e_score_correction_bias", None)
            scores = torch.softmax(logits, dim=-1) if bias is None else logits.sigmoid()
            suited = scores if bias is None else scores + bias
            margins = []
            if getattr(gate, "num_group", 1) > 1:
                groups = suited.view(len(suited), gate.num_group, -1)
                best = groups.topk(2, dim=-1).values.sum(dim=-1)
                margins.append(margin(best, gate.topk_group))
                chosen = best.topk(gate.topk_group, dim=-1).indices
                allowed = torch.zeros_like(best).scatter_(1, chosen, 1).bool().unsqueeze(-1)
                suited = groups.masked_fill(~allowed, float("-inf")).view_as(suited)
            # As many as all that is allowed leave nothing to choose.
            if (suited > float("-inf")).sum(dim=-1).min() > gate.top_k:
                margins.append(margin(suited, gate.top_k))
            self.scores[layer], self.margins[layer] = scores, min(margins, default=1.0)

        return keep

    def check(self, what):
        for layer, value in self.margins.items():
            if value < MARGIN:
                sys.exit(f"{what}: layer {layer} has a margin of {value}; choose another seed")


def margin(values, kept):
    """How far the last that is kept is from the first that is not."""
    ordered = values.sort(dim=-1, descending=True).values
    return (ordered[..., kept - 1] - ordered[..., kept]).min().item()


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
    """Gradients under the names and shapes of the saved file, where an expert's matrices are
    apart."""
    mixtral = model.config.model_type == "mixtral"
    block, gate, up, down = (
        (".block_sparse_moe.", "w1", "w3", "w2") if mixtral
        else (".mlp.", "gate_proj", "up_proj", "down_proj")
    )  # fmt: skip
    gradients = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if ".mlp.experts." in name:
            prefix = name.split(".mlp.experts.")[0] + block + "experts."
            for e in range(gradient.shape[0]):
                if name.endswith("gate_up_proj"):
                    width = gradient.shape[1] // 2
                    gradients[f"{prefix}{e}.{gate}.weight"] = gradient[e, :width].clone()
                    gradients[f"{prefix}{e}.{up}.weight"] = gradient[e, width:].clone()
                else:
                    gradients[f"{prefix}{e}.{down}.weight"] = gradient[e].clone()
        else:
            gradients[name.replace(".mlp.gate.", block + "gate.")] = gradient.clone()
    return gradients


def train(model, routers, tokens, targets):
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
        routers.check(f"step {step}")
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


def make(architecture, folder):
    torch.set_num_threads(1)
    model = make_model(architecture)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    saved = safetensors.torch.load_file(folder / "model.safetensors")

    routers = Routers(model)
    tokens, targets = random_batch()
    # A few batches again and again, so that there is something to learn.
    curve_tokens, curve_targets = (t.repeat(STEPS // 4, 1, 1) for t in random_batch((4,)))
    logits, loss = mean_loss(model, tokens, targets)
    loss.backward()
    routers.check("golden pass")
    golden = {"tokens": tokens, "targets": targets, "logits": logits.detach().contiguous(),
              "loss": loss.detach().reshape(1)}  # fmt: skip
    golden |= {f"router.{layer}": scores for layer, scores in routers.scores.items()}
    gradients = hub_gradients(model)
    shapes = {n: t.shape for n, t in saved.items() if not n.endswith("e_score_correction_bias")}
    assert {n: g.shape for n, g in gradients.items()} == shapes
    golden |= {f"gradient.{name}": g for name, g in gradients.items()}
    golden["curve.tokens"], golden["curve.targets"] = curve_tokens, curve_targets
    golden["curve.loss"] = train(model, routers, curve_tokens, curve_targets)
    safetensors.torch.save_file(golden, folder / "golden.safetensors")


def check(architecture):
    worst = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        made = pathlib.Path(temporary)
        make(architecture, made)
        for file in ["model.safetensors", "golden.safetensors"]:
            ours = safetensors.torch.load_file(GOLDEN / architecture / file)
            theirs = safetensors.torch.load_file(made / file)
            if ours.keys() != theirs.keys():
                sys.exit(f"{file}: the names differ: {ours.keys() ^ theirs.keys()}")
            for name, value in theirs.items():
                scale = value.abs().max().clamp_min(1e-30)
                error = ((ours[name] - value).abs().max() / scale).item()
                worst = max(worst, error)
                if error > 1e-5:
                    sys.exit(f"{architecture}: {file}: {name} differs by {error} of its largest "
                             "value")
    print(f"{architecture} agrees with transformers {transformers.__version__}: {worst:.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("architectures", nargs="*", default=list(MODELS), metavar="ARCHITECTURE")
    parser.add_argument("--check", action="store_true", help="remake and compare, write nothing")
    arguments = parser.parse_args()
    for architecture in arguments.architectures:
        if arguments.check:
            check(architecture)
        else:
            (GOLDEN / architecture).mkdir(parents=True, exist_ok=True)
            make(architecture, GOLDEN / architecture)
