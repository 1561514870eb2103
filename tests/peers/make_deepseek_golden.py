#!/usr/bin/env python3
"""Golden files of the MoE blocks of DeepSeek-V2 and V3, by Hugging Face transformers:
tests/peers/golden/deepseek/{v2,v3}.safetensors.

    tests/peers/setup.sh
    .venv-peers/bin/python tests/peers/make_deepseek_golden.py            # make them anew
    .venv-peers/bin/python tests/peers/make_deepseek_golden.py --check    # remake and compare

    x, out, probe         [tokens, hidden]: input, output, and d(loss) / d(out)
    chosen, weights       int64, fp32 [tokens, active]: of each token, by expert id
    gate, bias            [experts, hidden], [experts] (V3)
    gate_up, down         [experts, 2 width, hidden], [experts, hidden, width]
    shared.gate_up, shared.down
    gradient.NAME         of x and of each weight

No choice of an expert or a group is closer than MARGIN.
"""

import argparse
import pathlib
import sys

import safetensors.torch
import torch
from transformers.models.deepseek_v2 import configuration_deepseek_v2, modeling_deepseek_v2
from transformers.models.deepseek_v3 import configuration_deepseek_v3, modeling_deepseek_v3

GOLDEN = pathlib.Path(__file__).resolve().parent / "golden" / "deepseek"
TOKENS, HIDDEN, WIDTH, EXPERTS, ACTIVE, GROUPS, LIMIT, MARGIN = 48, 16, 12, 16, 4, 4, 2, 1e-5

COMMON = dict(
    hidden_size=HIDDEN,
    num_attention_heads=2,
    num_key_value_heads=2,
    moe_intermediate_size=WIDTH,
    n_shared_experts=2,
    num_experts_per_tok=ACTIVE,
    n_group=GROUPS,
    topk_group=LIMIT,
)


def make_v2():
    config = configuration_deepseek_v2.DeepseekV2Config(
        **COMMON, n_routed_experts=EXPERTS, routed_scaling_factor=4.0,
        topk_method="group_limited_greedy")
    return config, modeling_deepseek_v2.DeepseekV2Moe


def make_v3():
    config = configuration_deepseek_v3.DeepseekV3Config(
        **COMMON, n_routed_experts=EXPERTS, routed_scaling_factor=2.5, norm_topk_prob=True)
    return config, modeling_deepseek_v3.DeepseekV3MoE


def margin(values, kept):
    """How far the last that is kept is from the first that is not."""
    ordered = values.sort(dim=-1, descending=True).values
    return (ordered[..., kept - 1] - ordered[..., kept]).min().item()


def check_margins(scores, best):
    groups = scores.view(TOKENS, GROUPS, -1)
    group_scores = groups.topk(best, dim=-1).values.sum(dim=-1)
    allowed = torch.zeros_like(group_scores).scatter_(1, group_scores.topk(LIMIT).indices, 1)
    masked = groups.masked_fill(allowed.unsqueeze(-1) == 0, -1).view(TOKENS, -1)
    smallest = min(margin(group_scores, LIMIT), margin(masked, ACTIVE))
    if smallest < MARGIN:
        sys.exit(f"a choice is as close as {smallest}: change the seed")


def make(name):
    config, block_type = {"v2": make_v2, "v3": make_v3}[name]()
    config._experts_implementation = "eager"
    torch.manual_seed(3)
    block = block_type(config).float()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
        if name == "v3":
            block.gate.e_score_correction_bias.copy_(0.1 * torch.randn(EXPERTS))
    x = torch.randn(1, TOKENS, HIDDEN, requires_grad=True)
    probe = torch.randn(TOKENS, HIDDEN)
    _, weights, chosen = block.gate(x)
    order = chosen.argsort(dim=-1)
    out = block(x).view(TOKENS, HIDDEN)
    (out * probe).sum().backward()

    logits = x.detach().view(TOKENS, HIDDEN) @ block.gate.weight.detach().t()
    if name == "v2":
        check_margins(logits.softmax(-1), 1)
    else:
        check_margins(logits.sigmoid() + block.gate.e_score_correction_bias, 2)

    shared = block.shared_experts
    parts = {
        "x": [x],
        "gate": [block.gate.weight],
        "gate_up": [block.experts.gate_up_proj],
        "down": [block.experts.down_proj],
        "shared.gate_up": [shared.gate_proj.weight, shared.up_proj.weight],
        "shared.down": [shared.down_proj.weight],
    }
    golden = {key: torch.cat([t.detach() for t in of]) for key, of in parts.items()}
    golden |= {f"gradient.{key}": torch.cat([t.grad for t in of]) for key, of in parts.items()}
    for key in ("x", "gradient.x"):
        golden[key] = golden[key].view(TOKENS, HIDDEN)
    golden |= {"out": out.detach(), "probe": probe}
    golden["chosen"] = chosen.gather(1, order)
    golden["weights"] = weights.detach().gather(1, order)
    if name == "v3":
        golden["bias"] = block.gate.e_score_correction_bias.clone()
    return {key: value.contiguous().clone() for key, value in golden.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name in ("v2", "v3"):
        made, file = make(name), GOLDEN / f"{name}.safetensors"
        if not check:
            safetensors.torch.save_file(made, file)
            continue
        stored = safetensors.torch.load_file(file)
        if stored.keys() != made.keys():
            sys.exit(f"{file} has other tensors")
        for key, value in made.items():
            torch.testing.assert_close(stored[key], value, rtol=1e-4, atol=1e-5,
                                       msg=f"{name}: {key}")


if __name__ == "__main__":
    main()
