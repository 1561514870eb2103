"""Writes what was measured into docs/recipes.md: a table and a figure for each experiment."""

import pathlib
import statistics

import measures

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "recipes.md"
FIGURES = ROOT / "docs" / "figures"


# ---- Columns: what a table says of an arm, from its runs and those of the first arm, by seed.


def mean_of(runs, what):
    return statistics.fmean(getattr(run, what) for run in runs.values())


def bits(runs, _):
    values = [run.bits for run in runs.values()]
    return f"{statistics.fmean(values):.4f} (s.d. {measures.spread(values):.4f})"


def difference(runs, first):
    pair = None if runs is first else measures.paired(runs, first)
    return "" if pair is None else f"{pair[0]:+.4f} ± {pair[1]:.4f}"


def mean_column(what, digits):
    return lambda runs, _: f"{mean_of(runs, what):.{digits}f}"


def relative_column(what):
    return lambda runs, first: f"{mean_of(runs, what) / mean_of(first, what):.2f}"


def reach_column(index, relative):
    """Where the arm is as good as the first arm in the end, by seed: steps (0) or flops (1)."""
    def column(runs, first):
        reached = []
        for seed, run in runs.items():
            goal = first.get(seed)
            cost = measures.cost_to_reach(run.curve, goal.bits) if goal is not None else None
            if cost is not None:
                reached.append(cost[index] / (first[seed].flops if relative else 1))
        if not reached:
            return "never"
        text = f"{statistics.fmean(reached):{'.2f' if relative else '.0f'}}"
        return text if len(reached) == len(runs) else f"{text} ({len(reached)} of {len(runs)} runs)"
    return column


COLUMNS = {
    "bits above the floor": bits,
    "difference, 95 % interval": difference,
    "MaxVio, batch": mean_column("batch_vio", 2),
    "MaxVio, global": mean_column("global_vio", 2),
    "mutual information": mean_column("information", 3),
    "entropy": mean_column("entropy", 2),
    "pairs computed": relative_column("pairs"),
    "operations": relative_column("flops"),
    "steps to the first arm's loss": reach_column(0, relative=False),
    "operations to it": reach_column(1, relative=True),
}


def table(experiment, runs):
    first = runs[experiment.arms[0].name]
    rows = ["| " + " | ".join(["arm", *experiment.columns]) + " |",
            "|" + "---|" * (len(experiment.columns) + 1)]
    for arm in experiment.arms:
        if runs[arm.name]:
            cells = [COLUMNS[column](runs[arm.name], first) for column in experiment.columns]
            rows.append("| " + " | ".join([arm.name, *cells]) + " |")
    return rows


def probe_table(experiment, runs):
    """What each probe costs: more bits, and the 95 % interval of their mean."""
    names = list(dict.fromkeys(probe.name for arm in experiment.arms for probe in arm.probes))
    if not names:
        return []
    rows = ["", "More bits than the same run as it was trained, with", "",
            "| " + " | ".join(["arm", *names]) + " |", "|" + "---|" * (len(names) + 1)]
    for arm in experiment.arms:
        cells = []
        for name in names:
            losses = [run.probes[name] - run.bits for run in runs[arm.name].values()
                      if name in run.probes]
            cells.append(f"{statistics.fmean(losses):.3f} ± {measures.half_interval(losses):.3f}"
                         if losses else "")
        rows.append("| " + " | ".join([arm.name, *cells]) + " |")
    return rows


# ---- Figures. Each draws into a figure of matplotlib.


def scatter(x, label):
    """Loss against `x`, a point a run."""
    def draw(figure, experiment, runs):
        axes = figure.subplots()
        for arm in experiment.arms:
            of_arm = runs[arm.name].values()
            axes.scatter([getattr(run, x) for run in of_arm], [run.bits for run in of_arm], s=16,
                         label=arm.name)
        axes.set_xlabel(label)
        axes.set_ylabel("bits above the floor")
        return axes
    return draw


def curves(figure, experiment, runs):
    """Mean loss of the seeds over steps and over operations."""
    axes = figure.subplots(1, 2, sharey=True)
    for arm in experiment.arms:
        points = list(zip(*(run.curve for run in runs[arm.name].values())))
        loss = [statistics.fmean(point[2] for point in seeds) for seeds in points]
        for at, (side, unit) in enumerate(zip(axes, (1, 1e12))):
            side.plot([statistics.fmean(point[at] for point in seeds) / unit for seeds in points],
                      loss, marker=".", label=arm.name)
    for side, label in zip(axes, ("steps", "operations, 10¹²")):
        side.set_xlabel(label)
        side.set_yscale("log")
    axes[0].set_ylabel("bits above the floor")
    return axes[1]


def redundancy(figure, experiment, runs):
    """How the loss grows as the best experts of each token are taken away."""
    axes = figure.subplots()
    for arm in experiment.arms:
        shares = {0.0: 0.0}
        for probe in arm.probes:
            if probe.share is not None:
                shares[probe.share] = statistics.fmean(
                    run.probes[probe.name] - run.bits for run in runs[arm.name].values())
        axes.plot(list(shares), list(shares.values()), marker=".", label=arm.name)
    axes.set_xlabel("share of the routed experts that is taken away, the best first")
    axes.set_ylabel("more bits")
    return axes


def draw(experiment, runs):
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": experiment.key})
    from matplotlib import pyplot
    figure = pyplot.figure(figsize=(6.4, 3.6))
    axes = experiment.figure(figure, experiment, runs)
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    FIGURES.mkdir(exist_ok=True)
    path = FIGURES / f"recipes-{experiment.key}.svg"
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    return path


def section(experiment, runs):
    """`runs`: by arm, by seed."""
    figure = draw(experiment, runs)
    seeds = min(len(of_arm) for of_arm in runs.values())
    return [f"### {experiment.title}", "", f"{experiment.question} Seeds: {seeds}.", "",
            *table(experiment, runs), *probe_table(experiment, runs), "",
            f"![{experiment.caption}]({figure.relative_to(PAGE.parent)})", ""]


def write(sections):
    """Each experiment's lines, by key, between its marks; what people wrote around them stays."""
    page = PAGE.read_text(encoding="utf-8")
    for key, lines in sections.items():
        begin, end = f"<!-- {key}: begin -->\n", f"<!-- {key}: end -->"
        head, found, rest = page.partition(begin)
        if not found:
            raise RuntimeError(f"{PAGE} has no mark {begin.strip()}")
        page = head + begin + "\n".join(lines) + end + rest.partition(end)[2]
    PAGE.write_text(page, encoding="utf-8")
