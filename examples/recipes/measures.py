"""Numbers of one run of an experiment, from its folder."""

import dataclasses
import json
import math
import statistics

import markov_language

LAST_STEPS = 60  # over which loads are averaged
# Two-sided 95 % quantiles of Student's t, by degrees of freedom.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447,
           7: 2.365, 8: 2.306, 9: 2.262}


@dataclasses.dataclass(frozen=True)
class Measured:
    """Of one run. MaxVio (arXiv 2408.15664): the largest load over the mean, less 1; mean of layers."""
    bits: float         # validation loss above the least that is possible, a symbol
    batch_vio: float    # MaxVio of a step's tokens, mean of the last steps
    global_vio: float   # MaxVio of all validation tokens
    information: float  # mutual, of neighbouring layers' best experts, above chance, in nats
    entropy: float      # of a token's probabilities, in nats, mean of layers; of the validation
    pairs: float        # of tokens and experts that were computed in training, once it had routers
    flops: float        # of the training
    curve: tuple        # of each validation: step, flops until then, bits
    probes: dict        # by name: bits without retraining, with something of the model switched off


def bits_above_floor(nats):
    return nats / math.log(2) - markov_language.FLOOR_BITS


def neighbours_information(routing):
    layers = routing["layers"]
    pairs = [pair["nats"] - pair["shuffled"] for pair in routing["mutual_information"]
             if layers.index(pair["layers"][1]) - layers.index(pair["layers"][0]) == 1]
    return statistics.fmean(pairs)


def read_steps(folder):
    """The lines of metrics.jsonl, each step once, in order."""
    steps = {}
    for text in (folder / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        steps[line["step"]] = line
    return [steps[step] for step in sorted(steps)]


def curve_of(steps):
    points, flops = [], 0
    for step in steps:
        flops += step["flops"]
        if "validation_loss" in step:
            points.append((step["step"], flops, bits_above_floor(step["validation_loss"])))
    return tuple(points)


def measure(folder):
    """None where there is no complete run."""
    summary = folder / "summary.json"
    if not summary.exists():
        return None
    steps = read_steps(folder)
    routing = [step["routing"] for step in steps if "routing" in step]
    validation = steps[-1]["validation_routing"]
    probes = json.loads((folder / "probes.json").read_text())
    return Measured(
        bits=bits_above_floor(json.loads(summary.read_text())["validation_loss"]),
        batch_vio=statistics.fmean(statistics.fmean(each["max_vio"])
                                   for each in routing[-LAST_STEPS:]),
        global_vio=statistics.fmean(validation["max_vio"]),
        information=neighbours_information(validation),
        entropy=statistics.fmean(validation["entropy"]),
        pairs=sum(each["rows"] for each in routing),
        flops=sum(step["flops"] for step in steps),
        curve=curve_of(steps),
        probes={name: bits_above_floor(loss) for name, loss in probes.items()})


def spread(values):
    return statistics.stdev(values) if len(values) > 1 else math.nan


def half_interval(values):
    """Half of the 95 % interval of their mean."""
    return STUDENT.get(len(values) - 1, 1.96) * spread(values) / math.sqrt(len(values))


def paired(these, those, number=lambda run: run.bits):
    """Mean difference by seed, and half of its 95 % interval; None of fewer than two seeds."""
    differences = [number(these[seed]) - number(those[seed]) for seed in these if seed in those]
    if len(differences) < 2:
        return None
    return statistics.fmean(differences), half_interval(differences)


def cost_to_reach(curve, bits):
    """Steps and flops of the first validation that is as good; None where none is."""
    return next(((step, flops) for step, flops, reached in curve if reached <= bits), None)
