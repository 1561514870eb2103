#!/usr/bin/env python3
"""Runs the experiments of docs/recipes.md and writes their tables and figures there.

    examples/recipes/experiments.py                        # all, 5 seeds: an hour on two cores
    examples/recipes/experiments.py --only balance --seeds 1 2 3
    examples/recipes/experiments.py --report               # only write again what has been run

A run that is complete is not run again. Needs matplotlib for the figures.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import typing

import markov_language
import measures
import page

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUNS = ROOT / "runs" / "experiments"
COMMON_COLUMNS = ("bits above the floor", "difference, 95 % interval", "MaxVio, batch",
                  "MaxVio, global")


@dataclasses.dataclass(frozen=True)
class Probe:
    """The trained model's validation loss without some of it."""
    name: str
    flags: tuple  # of `moesaic eval`
    share: float | None = None  # of the routed experts that are taken away, the best first


@dataclasses.dataclass(frozen=True)
class Arm:
    name: str
    sets: tuple = ()
    probes: tuple = ()


@dataclasses.dataclass(frozen=True)
class Experiment:
    key: str
    title: str
    question: str
    arms: tuple  # the first is what the others are compared with
    figure: typing.Callable
    caption: str
    sets: tuple = ()  # of all arms
    columns: tuple = COMMON_COLUMNS


def balance():
    def loss(alpha, *more):
        return (f"recipe.router.balance.coefficient={alpha}", *more)
    aux = [Arm(f"loss, coefficient {alpha}", loss(alpha))
           for alpha in (0.001, 0.003, 0.01, 0.03, 0.1)]
    sequence = [Arm(f"loss of each sequence, coefficient {alpha}",
                    loss(alpha, "recipe.router.balance.scope=sequence")) for alpha in (0.01, 0.1)]
    bias = [Arm(f"bias, speed {speed}", loss(0, f"recipe.router.balance.bias={{speed: {speed}}}"))
            for speed in (0.001, 0.003, 0.01)]
    return Experiment(
        "balance", "Balance: a bias against a loss",
        "Does the loss-free bias balance the load at no cost in loss, whatever coefficient the "
        "auxiliary loss has? Sigmoid gate, 2 of 8 experts. A micro-batch is the whole batch of the "
        "step, so the loss is over the batch where nothing else is said.",
        (Arm("no balancing", loss(0)), *aux, *sequence, *bias),
        page.scatter("global_vio", "global MaxVio (0: perfect balance)"),
        "bits above the floor against MaxVio", ("recipe.router.score=sigmoid",))


def fine_grained():
    def pieces(segments, shared):
        routed, active = 8 * segments - shared, 2 * segments - shared
        name = f"{active} of {routed}"
        probes = [Probe(f"the best {word} of the experts taken away",
                        ("--skip-best", str(round(routed * share))), share)
                  for word, share in (("eighth", 0.125), ("quarter", 0.25))]
        probes.append(Probe("one active expert fewer", ("--active", str(active - 1))))
        if shared > 0:
            name = f"{shared} shared + {name}"
            probes.append(Probe("no shared expert, as many routed ones more",
                                ("--without-shared", "--active", str(active + shared))))
        sets = (f"recipe.experts.segments={segments}", f"recipe.experts.shared={shared}")
        return Arm(name, sets, tuple(probes))
    return Experiment(
        "deepseek-moe", "DeepSeekMoE: fine-grained and shared experts",
        "Do more and smaller experts, or shared ones, help at equal total and active parameters? "
        "And how redundant are the experts? Renormalised weights everywhere.",
        (pieces(1, 0), pieces(2, 0), pieces(4, 0), pieces(2, 1), pieces(2, 2), pieces(4, 1),
         pieces(4, 2)),
        page.redundancy, "more bits against the share of experts taken away",
        columns=(*COMMON_COLUMNS, "pairs computed", "operations"))


def evolution():
    def evomoe(*more):
        return ("recipe.preset=evomoe", *more)
    switch = ("recipe.router.weight.renormalize=false",)
    return Experiment(
        "evomoe", "EvoMoE: dense to sparse",
        "Does a model that starts with one expert and grows sparse reach a lower loss than top-1 "
        "routing from the start, or the same loss earlier? The model that is validated is top-1 in "
        "all arms.",
        (Arm("Switch (top-1)", switch),
         Arm("Switch from copies of one expert", (*switch, "recipe.experts.spawn={mask: 0}")),
         Arm("EvoMoE", evomoe()),
         Arm("EvoMoE, copies without mask", evomoe("recipe.experts.spawn={mask: 0}")),
         Arm("EvoMoE, earlier: 3 % and 30 %",
             evomoe("recipe.experts.spawn={step: 18}",
                    "recipe.router.select.dense_to_sparse={hard_step: 180}")),
         Arm("EvoMoE, never hard",
             evomoe("recipe.router.select.dense_to_sparse={hard_step: 600, decay_steps: 240}"))),
        page.curves, "bits above the floor over steps and operations",
        ("model.moe.active=1", "train.validate_every_steps=30"),
        (*COMMON_COLUMNS, "operations", "steps to the first arm's loss", "operations to it"))


def reuse():
    def rexmoe(layers, *more):
        return (f"recipe.experts.reuse={layers}", *more)
    def dropout(start):
        return (f"recipe.router.select.candidates={{mode: random_all, from: {start}}}",)
    progressive = "recipe.router.select.candidates={mode: local_first}"
    return Experiment(
        "rexmoe", "ReXMoE: experts of other layers",
        "Does it help a layer to choose from its neighbours' experts, and is it their growing "
        "number or the dropout of experts that does it? 8 layers. The dropouts leave as large a "
        "share of the experts as 2 and 4 layers that share do, and end when those end. The last arm "
        "has twice as many experts of its own, so more parameters: it is a bound.",
        (Arm("own experts"), Arm("own experts, half dropped at first", dropout(4)),
         Arm("own experts, three quarters dropped at first", dropout(2)),
         Arm("2 layers share", rexmoe(2)),
         Arm("2 layers share, progressive", rexmoe(2, progressive)),
         Arm("4 layers share", rexmoe(4)),
         Arm("4 layers share, progressive", rexmoe(4, progressive)),
         Arm("16 own experts", ("model.moe.experts=16",))),
        page.scatter("global_vio", "global MaxVio (0: perfect balance)"),
        "bits above the floor against MaxVio", ("model.layers=8",))


def recurrent():
    def rmoe(mode):
        return (f"recipe.router.state={{width: 32, mode: {mode}}}",)
    return Experiment(
        "rmoe", "RMoE: a recurrent router",
        "Does a state that goes from layer to layer help routing? `not_passed` has the same router "
        "without the state, `detach` without its gradient. 12 layers, 2 of 16 experts.",
        (Arm("linear router"), Arm("not passed", rmoe("not_passed")), Arm("detach", rmoe("detach")),
         Arm("carry", rmoe("carry"))),
        page.scatter("information", "mutual information of neighbouring layers' experts, nats"),
        "bits above the floor against mutual information",
        ("model.layers=12", "model.moe.experts=16"),
        (*COMMON_COLUMNS, "mutual information", "entropy"))


EXPERIMENTS = [balance(), fine_grained(), evolution(), reuse(), recurrent()]


def folder_of(experiment, arm, seed):
    name = re.sub(r"[^a-z0-9.]+", "-", arm.name.lower()).strip("-")
    return RUNS / experiment.key / f"{name}.{seed}"


def moesaic_json(command):
    """The object that a verb of moesaic prints last."""
    done = subprocess.run([*command, "-o", "json"], cwd=ROOT, capture_output=True, text=True,
                          check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def probe(moesaic, arm, checkpoints):
    command = [moesaic, "eval", "--checkpoint", str(checkpoints), "--samples", "1024",
               "--threads", "1"]
    return {each.name: moesaic_json([*command, *each.flags])["validation_loss"]
            for each in arm.probes}


def run(moesaic, experiment, arm, seed):
    """The summary is written last: where it is, the run is complete."""
    folder = folder_of(experiment, arm, seed)
    shutil.rmtree(folder, ignore_errors=True)
    command = [moesaic, "run", "-f", str(ROOT / "examples/recipes/markov.yaml")]
    for value in (*experiment.sets, *arm.sets, f"train.seed={seed}", f"run.dir={folder}"):
        command += ["--set", value]
    summary = moesaic_json(command)
    probes = probe(moesaic, arm, folder / "checkpoints")
    (folder / "probes.json").write_text(json.dumps(probes) + "\n")
    shutil.rmtree(folder / "checkpoints")
    (folder / "summary.json").write_text(json.dumps(summary) + "\n")


def run_missing(moesaic, experiments, seeds, at_once):
    missing = [(experiment, arm, seed)
               for experiment in experiments for seed in seeds for arm in experiment.arms
               if measures.measure(folder_of(experiment, arm, seed)) is None]
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        runs = {pool.submit(run, moesaic, *each): each for each in missing}
        try:
            for number, done in enumerate(concurrent.futures.as_completed(runs), start=1):
                done.result()
                experiment, arm, seed = runs[done]
                print(f"[{number}/{len(missing)}] {experiment.key}: {arm.name}, seed {seed}",
                      file=sys.stderr)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def measured(experiment, seeds):
    """By arm, by seed that was run."""
    runs = {}
    for arm in experiment.arms:
        of_arm = {seed: measures.measure(folder_of(experiment, arm, seed)) for seed in seeds}
        runs[arm.name] = {seed: run for seed, run in of_arm.items() if run is not None}
    return runs


def main():
    keys = [experiment.key for experiment in EXPERIMENTS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=keys, default=keys, metavar="EXPERIMENT",
                        help=f"of {', '.join(keys)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--at-once", type=int, default=os.cpu_count(),
                        help="runs beside each other")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--moesaic", default=str(ROOT / "build/release/bin/moesaic"))
    given = parser.parse_args()
    experiments = [experiment for experiment in EXPERIMENTS if experiment.key in given.only]
    if not given.report:
        corpus = ROOT / "corpus" / "markov"
        if not (corpus / "validation.idx").exists():
            markov_language.write_corpora(str(corpus))
        run_missing(given.moesaic, experiments, given.seeds, given.at_once)
    page.write({experiment.key: page.section(experiment, measured(experiment, given.seeds))
                for experiment in experiments})


if __name__ == "__main__":
    main()
