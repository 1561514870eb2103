#!/usr/bin/env python3
"""Runs the experiments of docs/recipes.md and writes their tables and figures there.

    examples/recipes/experiments.py                        # all, 5 seeds: about an hour on two cores
    examples/recipes/experiments.py --only balance --seeds 1 2 3
    examples/recipes/experiments.py --report               # only write again what has been run

A run that is complete is not run again. Needs matplotlib for the figures.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import math
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys

import markov_language

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "recipes.md"
FIGURES = ROOT / "docs" / "figures"
RUNS = ROOT / "runs" / "experiments"
LAST_STEPS = 60  # over which loads are averaged
# Two-sided 95 % quantiles of Student's t, by degrees of freedom.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclasses.dataclass(frozen=True)
class Arm:
    name: str
    sets: tuple = ()


@dataclasses.dataclass(frozen=True)
class Experiment:
    key: str
    title: str
    question: str
    arms: tuple  # the first is what the others are compared with
    sets: tuple = ()  # of all arms


def balance():
    sigmoid = ("recipe.router.score=sigmoid",)
    aux = [Arm(f"loss, coefficient {alpha}", (f"recipe.router.balance.coefficient={alpha}",))
           for alpha in (0.001, 0.003, 0.01, 0.03, 0.1)]
    bias = [Arm(f"bias, speed {speed}", ("recipe.router.balance.coefficient=0",
                                         f"recipe.router.balance.bias={{speed: {speed}}}"))
            for speed in (0.001, 0.003, 0.01)]
    return Experiment(
        "balance", "Balance: a bias against a loss",
        "Does the loss-free bias balance the load at no cost in loss, whatever coefficient the "
        "auxiliary loss has? Sigmoid gate, 2 of 8 experts.",
        (Arm("no balancing", ("recipe.router.balance.coefficient=0",)), *aux, *bias), sigmoid)


def fine_grained():
    def pieces(segments, shared):
        return (f"recipe.experts.segments={segments}", f"recipe.experts.shared={shared}")
    return Experiment(
        "deepseek-moe", "DeepSeekMoE: fine-grained and shared experts",
        "Do more and smaller experts, or a shared one, help at equal total and active parameters? "
        "Renormalised weights everywhere.",
        (Arm("2 of 8"), Arm("4 of 16", pieces(2, 0)), Arm("8 of 32", pieces(4, 0)),
         Arm("1 shared + 3 of 15", pieces(2, 1)), Arm("1 shared + 7 of 31", pieces(4, 1))))


def evolution():
    def evomoe(*more):
        return ("recipe.preset=evomoe", *more)
    return Experiment(
        "evomoe", "EvoMoE: dense to sparse",
        "Does a model that starts with one expert and grows sparse reach a lower loss than top-1 "
        "routing from the start? The last gate is top-1 in all arms.",
        (Arm("Switch (top-1)", ("recipe.router.weight.renormalize=false",)),
         Arm("EvoMoE", evomoe()),
         Arm("EvoMoE, copies without mask", evomoe("recipe.experts.spawn={mask: 0}")),
         Arm("EvoMoE, earlier: 3 % and 30 %",
             evomoe("recipe.experts.spawn={step: 18}",
                    "recipe.router.select.dense_to_sparse={hard_step: 180}"))),
        ("model.moe.active=1",))


def reuse():
    def rexmoe(layers, *more):
        return (f"recipe.experts.reuse={layers}", *more)
    progressive = "recipe.router.select.candidates={mode: local_first}"
    return Experiment(
        "rexmoe", "ReXMoE: experts of other layers",
        "Does it help a layer to choose from its neighbours' experts, and is it their growing number or "
        "the dropout of experts that does it?",
        (Arm("own experts"),
         Arm("own experts, dropout", ("recipe.router.select.candidates={mode: random_all, from: 4}",)),
         Arm("2 layers share", rexmoe(2)), Arm("2 layers share, progressive", rexmoe(2, progressive)),
         Arm("4 layers share", rexmoe(4)), Arm("4 layers share, progressive", rexmoe(4, progressive))))


def recurrent():
    def rmoe(mode):
        return (f"recipe.router.state={{width: 32, mode: {mode}}}",)
    return Experiment(
        "rmoe", "RMoE: a recurrent router",
        "Does a state that goes from layer to layer help routing? `not_passed` has the same router without "
        "the state, `detach` without its gradient.",
        (Arm("linear router"), Arm("not passed", rmoe("not_passed")), Arm("detach", rmoe("detach")),
         Arm("carry", rmoe("carry"))))


EXPERIMENTS = [balance(), fine_grained(), evolution(), reuse(), recurrent()]


# ---- Running.


def folder_of(experiment, arm, seed):
    name = re.sub(r"[^a-z0-9.]+", "-", arm.name.lower()).strip("-")
    return RUNS / experiment.key / f"{name}.{seed}"


def summary_of(experiment, arm, seed):
    """What `moesaic run` said of a complete run; None when there is none."""
    path = folder_of(experiment, arm, seed) / "summary.json"
    return json.loads(path.read_text()) if path.exists() else None


def run(moesaic, experiment, arm, seed):
    folder = folder_of(experiment, arm, seed)
    shutil.rmtree(folder, ignore_errors=True)
    sets = [*experiment.sets, *arm.sets, f"train.seed={seed}", f"run.dir={folder}"]
    command = [moesaic, "run", "-f", str(ROOT / "examples/recipes/markov.yaml"), "-o", "json"]
    for value in sets:
        command += ["--set", value]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    shutil.rmtree(folder / "checkpoints")
    (folder / "summary.json").write_text(done.stdout.splitlines()[-1] + "\n")


def run_missing(moesaic, experiments, seeds, at_once):
    missing = [(experiment, arm, seed) for seed in seeds for experiment in experiments
               for arm in experiment.arms if summary_of(experiment, arm, seed) is None]
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


# ---- Numbers.


@dataclasses.dataclass(frozen=True)
class Measured:
    """Of one run. MaxVio (arXiv 2408.15664) is the largest load over the mean, less 1; mean of layers."""
    bits: float       # validation loss above the least that is possible, a symbol
    batch_vio: float  # MaxVio of a step's tokens, mean of the last steps
    global_vio: float  # MaxVio of all validation tokens
    information: float  # mutual information of neighbouring layers' best experts, above chance, in nats
    pairs: float      # of tokens and experts that were computed in training


def neighbours_information(routing):
    layers = routing["layers"]
    pairs = [pair["nats"] - pair["shuffled"] for pair in routing["mutual_information"]
             if layers.index(pair["layers"][1]) - layers.index(pair["layers"][0]) == 1]
    return statistics.fmean(pairs)


def measure(summary, folder):
    steps = {}
    for text in (folder / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        steps[line["step"]] = line
    routing = [steps[step]["routing"] for step in sorted(steps)]
    validation = steps[max(steps)]["validation_routing"]
    return Measured(
        bits=summary["validation_loss"] / math.log(2) - markov_language.FLOOR_BITS,
        batch_vio=statistics.fmean(statistics.fmean(each["max_vio"]) for each in routing[-LAST_STEPS:]),
        global_vio=statistics.fmean(validation["max_vio"]),
        information=neighbours_information(validation),
        pairs=sum(each["rows"] for each in routing))


def measured(experiment, arm, seeds):
    """By seed that was run."""
    summaries = {seed: summary_of(experiment, arm, seed) for seed in seeds}
    return {seed: measure(summary, folder_of(experiment, arm, seed))
            for seed, summary in summaries.items() if summary is not None}


def spread(values):
    return statistics.stdev(values) if len(values) > 1 else math.nan


def paired(these, those):
    """Mean of the differences by seed, and half of its 95 % interval."""
    differences = [these[seed].bits - those[seed].bits for seed in these if seed in those]
    if len(differences) < 2:
        return None
    half = STUDENT.get(len(differences) - 1, 1.96) * spread(differences) / math.sqrt(len(differences))
    return statistics.fmean(differences), half


# ---- The page.


def table(experiment, seeds):
    rows = ["| arm | bits above the floor | difference, 95 % interval | MaxVio, batch | MaxVio, global | "
            "mutual information | pairs computed |", "|---|---|---|---|---|---|---|"]
    first = measured(experiment, experiment.arms[0], seeds)
    for arm in experiment.arms:
        numbers = measured(experiment, arm, seeds)
        if not numbers:
            continue
        bits = [run.bits for run in numbers.values()]
        difference = None if arm is experiment.arms[0] else paired(numbers, first)
        text = "" if difference is None else f"{difference[0]:+.4f} ± {difference[1]:.4f}"
        rows.append(f"| {arm.name} | {statistics.fmean(bits):.4f} (s.d. {spread(bits):.4f}) | {text} | "
                    f"{mean_of(numbers, 'batch_vio'):.2f} | {mean_of(numbers, 'global_vio'):.2f} | "
                    f"{mean_of(numbers, 'information'):.3f} | "
                    f"{mean_of(numbers, 'pairs') / mean_of(first, 'pairs'):.2f} |")
    return rows


def mean_of(numbers, what):
    return statistics.fmean(getattr(run, what) for run in numbers.values())


def draw(experiment, seeds):
    """Loss against global MaxVio, a point a run."""
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": experiment.key})
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6))
    for arm in experiment.arms:
        numbers = measured(experiment, arm, seeds).values()
        axes.scatter([run.global_vio for run in numbers], [run.bits for run in numbers], s=16,
                     label=arm.name)
    axes.set_xlabel("global MaxVio (0: perfect balance)")
    axes.set_ylabel("bits above the floor")
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    FIGURES.mkdir(exist_ok=True)
    path = FIGURES / f"recipes-{experiment.key}.svg"
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    return path


def section(experiment, seeds):
    figure = draw(experiment, seeds)
    runs = min(len(measured(experiment, arm, seeds)) for arm in experiment.arms)
    return [f"### {experiment.title}", "", f"{experiment.question} Seeds: {runs}.", "",
            *table(experiment, seeds), "",
            f"![bits above the floor against MaxVio]({figure.relative_to(PAGE.parent)})", ""]


def write_page(experiments, seeds):
    """Each experiment between its marks, where what people wrote around them stays."""
    page = PAGE.read_text(encoding="utf-8")
    for experiment in experiments:
        begin, end = f"<!-- {experiment.key}: begin -->\n", f"<!-- {experiment.key}: end -->"
        head, found, rest = page.partition(begin)
        if not found:
            raise RuntimeError(f"{PAGE} has no mark {begin.strip()}")
        page = head + begin + "\n".join(section(experiment, seeds)) + end + rest.partition(end)[2]
    PAGE.write_text(page, encoding="utf-8")


def main():
    keys = [experiment.key for experiment in EXPERIMENTS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=keys, default=keys, metavar="EXPERIMENT",
                        help=f"of {', '.join(keys)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--at-once", type=int, default=os.cpu_count(), help="runs beside each other")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--moesaic", default=str(ROOT / "build/release/bin/moesaic"))
    given = parser.parse_args()
    experiments = [experiment for experiment in EXPERIMENTS if experiment.key in given.only]
    if not given.report:
        corpus = ROOT / "corpus" / "markov"
        if not (corpus / "validation.idx").exists():
            markov_language.write_corpora(str(corpus))
        run_missing(given.moesaic, experiments, given.seeds, given.at_once)
    write_page(experiments, given.seeds)


if __name__ == "__main__":
    main()
