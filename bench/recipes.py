#!/usr/bin/env python3
"""What each recipe costs: CPU time a token beside top-k routing with as many active parameters.

    bench/recipes.py [--rounds 5] [--precision bf16]

Both sides of a row run in turn, several times, and the middle of their ratios is printed with its range, so
that a machine whose speed drifts does not favour one. Needs the release build; wants a quiet machine.
"""

import argparse
import os
import pathlib
import re
import statistics
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[1]
BENCH = ROOT / "build/release/bin/moesaic-train-bench"
SWITCH = ["model.moe.active=1", "recipe.router.weight.renormalize=false"]
# The hard phase is reached within the warm-up.
EVOMOE = ["recipe.preset=evomoe", "model.moe.active=1", "recipe.experts.spawn={step: 1}",
          "recipe.router.select.dense_to_sparse={hard_step: 2}"]
# Name, what is set, what it is compared with, the most that it may cost.
ROWS = [
    ("RMoE, width 64", ["recipe.router.state={width: 64}"], [], 1.05),
    ("ReXMoE, 2 layers share", ["recipe.experts.reuse=2"], [], 1.10),
    ("ReXMoE, 4 layers share", ["recipe.experts.reuse=4"], [], 1.10),
    ("DeepSeekMoE, 8 of 32", ["recipe.experts.segments=4"], [], 1.25),
    ("DeepSeekMoE, 1 shared + 7 of 31", ["recipe.experts={segments: 4, shared: 1}"], [], 1.25),
    ("EvoMoE, last phase, against Switch", EVOMOE, SWITCH, 1.05),
]


def cpu_us_a_token(sets, given):
    command = ["mpirun", "-n", str(given.ranks), "--oversubscribe", "--bind-to", "none",
               "--mca", "btl", "self,vader", BENCH, "--job", ROOT / "configs/bench/coarse.yaml",
               "--precision", given.precision, "--no-floor", "--steps", str(given.steps)]
    if os.getuid() == 0:
        command.insert(1, "--allow-run-as-root")
    for value in sets:
        command += ["--set", value]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode != 0:
        raise SystemExit(f"recipes.py: {' '.join(map(str, command))}\n{done.stderr}")
    return float(re.search(r"CPU us a token: ([0-9.]+)", done.stdout).group(1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    given = parser.parse_args()
    print("| recipe | CPU time of top-k with as many active parameters | aim |")
    print("|---|---|---|")
    for name, sets, against, aim in ROWS:
        ratios = sorted(cpu_us_a_token(sets, given) / cpu_us_a_token(against, given)
                        for _ in range(given.rounds))
        print(f"| {name} | {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}) | "
              f"{aim:.2f} |", flush=True)


if __name__ == "__main__":
    main()
