"""Experiments on a trained Fashion-MNIST network: the paper's table, the limits of few steps, solvers at equal cost.

python -m experiments.fashion_mnist table | limits | figures [--config=fashion_mnist] [--workdir=PATH] [--dest=PATH]

--config names a file of configs/ddpm. Its runs are in results/CONFIG, tables and pictures in docs/CONFIG.

table: DDPM, DDIM and PNDM with n = 3, 5 and 10, from pure noise, from the best start and from the automatic start, for
three seeds.
limits: for each row of the table and one seed, the distance between its samples and samples that the same network draws
in many steps.
figures: the scores of every solver, with and without a late start, for several numbers of network evaluations. n is the
largest number of steps for which these evaluations are enough.

The best start is searched on noise of another seed. Runs are kept below the workdir, and the same command continues
after an interruption.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from tqdm import tqdm

import sampling
from core import files, plots, tables
from core.arithmetic import ceil_div
from experiments.runs import COLUMNS, Experiment, main, row, spread, with_runs, write_and_print, write_rows
from metrics import comparison, frechet, statistics
from metrics.results import Result
from sampling.auto_grid import FINE_STEPS
from sampling.time_grid import AUTO_START

NETWORKS = ("fashion_mnist", "fashion_mnist_eps")

TABLE_SEEDS = (1, 2, 3)
TABLE_SAMPLES = 10_000
TABLE_SEARCHED = 1500  # images per start in the search
# Scores on MNIST without and with a late start, from the paper's Table 1. The keys are (sampler, n).
PAPER = {
    ("ddpm", 3): (42.63, 11.92),
    ("ddpm", 5): (13.25, 6.95),
    ("ddpm", 10): (6.75, 4.21),
    ("ddim", 3): (42.63, 11.92),
    ("ddim", 5): (13.25, 6.95),
    ("ddim", 10): (4.46, 2.44),
    ("pndm", 3): (154.89, 38.23),
    ("pndm", 5): (21.22, 5.11),
    ("pndm", 10): (14.36, 5.02),
}

LIMIT_SEED = 4
LIMIT_SAMPLES = 5000
# For each sampler: the sampler and n that draw, almost exactly, from the distribution to which the sampler converges.
LIMITS = {"ddpm": ("ddpm", 200), "ddim": ("ipndm", 50), "pndm": ("ipndm", 50)}

SOLVER_SEED = 1
SOLVER_SAMPLES = 2000
SOLVER_SEARCHED = 500  # images per start in the search
BUDGETS = (4, 5, 6, 8, 10, 15, 20)  # network evaluations per image
SOLVERS = [(name, "linear") for name, solver in sampling.SAMPLERS.items() if solver.nfe(1)]
SOLVERS += [(name, "auto") for name in ("ddim", "dpmpp_2m", "unipc_3")]
REFERENCE = ("ddpm", 1000)  # the sampler and n with which runs of few steps are compared

# The table

Cell = Mapping[str, Sequence[Result]]
"""The runs of one sampler and n, one per seed, by the kind of start: "full" (pure noise), "best" or "auto"."""


def make_table(experiment: Experiment, dest: Path) -> None:
    """Writes table.csv, table.txt and grid.png."""
    cells = []
    rows = []
    shown = []
    for sampler, n_steps in tqdm(PAPER, "cells"):
        best = experiment.best_start(sampler, n_steps, num=TABLE_SEARCHED)
        cell = {}
        for kind, t_start in {"full": None, "best": best, "auto": AUTO_START}.items():
            cell[kind] = [
                experiment.score(sampler, n_steps, seed=seed, num=TABLE_SAMPLES, t_start=t_start)
                for seed in TABLE_SEEDS
            ]
            rows += [row(kind, run) for run in cell[kind]]
        cells.append(cell)
        shown += [cell["full"][0], cell["best"][0]]
        write_rows(dest / "table.csv", rows)  # after every cell, so that it can be read before all are finished
    plots.save_comparison(dest / "grid.png", comparison.comparison_rows([shown], experiment.folder))
    write_and_print(dest / "table.txt", f"{score_table(cells)}\n\n{diversity_table(cells)}")


def score_table(cells: Sequence[Cell]) -> str:
    """Makes a table of the scores and gains of each cell, beside the gain in the paper."""
    header = ("sampler", "n", "NFE", "without", "best start", "score", "gain", "auto", "score", "gain", "the paper's")
    lines = []
    for cell, (paper_without, paper_late) in zip(cells, PAPER.values(), strict=True):
        first = cell["full"][0]
        without = mean(run["score"] for run in cell["full"])
        line = [first["sampler"], str(first["n_steps"]), str(first["nfe"]), spread(cell["full"], "score")]
        for kind in ("best", "auto"):
            chosen = sorted({run["t_start"] for run in cell[kind]})
            gain = without / mean(run["score"] for run in cell[kind])
            line += ["/".join(map(str, chosen)), spread(cell[kind], "score"), f"{gain:.1f}x"]
        lines.append([*line, f"{paper_without / paper_late:.1f}x"])
    return tables.aligned(header, lines)


def diversity_table(cells: Sequence[Cell]) -> str:
    """Makes a table of precision, recall, coverage and label entropy, from pure noise and from the best late start."""
    names = ("precision", "recall", "coverage", "label_entropy")
    lines = [
        [cell[kind][0]["sampler"], str(cell[kind][0]["n_steps"]), kind, *[spread(cell[kind], name) for name in names]]
        for cell in cells
        for kind in ("full", "best")
    ]
    return tables.aligned(("sampler", "n", "start", "precision", "recall", "coverage", "label entropy, bits"), lines)


# The distance to samples of the same network in many steps


def make_limits(experiment: Experiment, dest: Path) -> None:
    """Writes limits.csv and limits.txt."""
    limits = {}
    for sampler, (limit_sampler, limit_steps) in LIMITS.items():
        _, tally = experiment.score_and_tally(limit_sampler, limit_steps, seed=LIMIT_SEED, num=LIMIT_SAMPLES)
        limits[sampler] = statistics.reference_of(tally, experiment.folder)
    rows = []
    lines = []
    for sampler, n_steps in tqdm(PAPER, "cells"):
        best = experiment.best_start(sampler, n_steps, num=TABLE_SEARCHED)
        line = [sampler, str(n_steps), str(sampling.nfe(sampler, n_steps)), str(best)]
        for kind, t_start in {"full": None, "best": best}.items():
            run, tally = experiment.score_and_tally(
                sampler, n_steps, seed=TABLE_SEEDS[0], num=LIMIT_SAMPLES, t_start=t_start
            )
            limit = frechet.distance(tally.groups, limits[sampler])
            rows.append([limit.value, limit.error, *row(kind, run)])
            line += [f"{run['score']:.2f} ± {run['score_error']:.1g}", f"{limit.value:.2f} ± {limit.error:.1g}"]
        lines.append(line)
        files.write_text(dest / "limits.csv", tables.to_csv(("to_limit", "to_limit_error", *COLUMNS), rows))
    header = ("sampler", "n", "NFE", "best start", "without, to data", "to limit", "with, to data", "to limit")
    write_and_print(dest / "limits.txt", tables.aligned(header, lines))


# All solvers at equal cost


class SolverRun(NamedTuple):
    """The settings of a run of a solver, and the key of the run in SolverResults."""

    sampler: str
    spacing: str
    budget: int  # network evaluations per image
    start: str  # "full" (pure noise) or "best"

    @property
    def name(self) -> str:
        """Returns the name of the solver in tables."""
        return self.sampler if self.spacing == "linear" else f"{self.sampler}, {self.spacing} grid"


SolverResults = Mapping[SolverRun, Result]


def make_figures(experiment: Experiment, dest: Path) -> None:
    """Writes solvers.csv, solvers.txt and solvers.png."""
    common = {"seed": SOLVER_SEED, "num": SOLVER_SAMPLES}
    results: dict[SolverRun, Result] = {}
    for budget, (sampler, spacing) in tqdm(list(itertools.product(BUDGETS, SOLVERS)), "solvers"):
        n_steps = steps_within(sampler, spacing, budget)
        if n_steps == 0:
            continue
        best = experiment.best_start(sampler, n_steps, num=SOLVER_SEARCHED, spacing=spacing)
        for kind, t_start in {"full": None, "best": best}.items():
            result = experiment.score(sampler, n_steps, t_start=t_start, spacing=spacing, **common)
            results[SolverRun(sampler=sampler, spacing=spacing, budget=budget, start=kind)] = result
    long_run = experiment.score(*REFERENCE, **common)
    rows = [row(run.start, result) for run, result in results.items()]
    write_rows(dest / "solvers.csv", [*rows, row("full", long_run)])
    draw_solvers(dest / "solvers.png", results, long_run)
    write_and_print(dest / "solvers.txt", best_table(results, long_run))


def steps_within(sampler: str, spacing: str, budget: int) -> int:
    """Returns the largest n with at most `budget` network evaluations.

    Returns 0 if there is no such n, or if n is too large for an automatic grid.
    """
    n_steps = max((n for n in range(1, budget + 1) if sampling.nfe(sampler, n) <= budget), default=0)
    if spacing != "linear" and n_steps > FINE_STEPS // 2:
        return 0
    return n_steps


def best_table(results: SolverResults, long_run: Result) -> str:
    """Makes a table with, for every budget, the best solver without a late start and the best solver with one."""
    lines = []
    for budget in BUDGETS:
        full, late = (_best_run(results, budget, kind) for kind in ("full", "best"))
        without = results[full]["score"]
        score = results[late]["score"]
        line = [str(budget), full.name, f"{without:.2f}", late.name, str(results[late]["t_start"]), f"{score:.2f}"]
        lines.append([*line, f"{without / score:.2f}x"])
    header = ("NFE", "best without", "score", "best with", "start", "score", "gain")
    return tables.aligned(header, lines) + f"\n\n{long_name()}: {long_run['score']:.2f}"


def _best_run(results: SolverResults, budget: int, start: str) -> SolverRun:
    runs = [run for run in results if (run.budget, run.start) == (budget, start)]
    return min(runs, key=lambda run: results[run]["score"])


def long_name() -> str:
    """Returns the name of REFERENCE in tables."""
    sampler, n_steps = REFERENCE
    return f"{sampler}, n = {n_steps}"


LINES = {  # (grid, start): the style and label of its line in the panel of a solver
    ("linear", "full"): {"color": "C1", "label": "from pure noise"},
    ("linear", "best"): {"color": "C0", "label": "late start"},
    ("auto", "full"): {"color": "C1", "linestyle": ":", "label": "from pure noise, auto grid"},
    ("auto", "best"): {"color": "C0", "linestyle": ":", "label": "late start, auto grid"},
}


def draw_solvers(path: Path, results: SolverResults, long_run: Result) -> None:
    """Draws score against network evaluations, with one panel per solver.

    Every panel also has the best score of all solvers and the score of REFERENCE.
    """
    names = list(dict.fromkeys(run.sampler for run in results))
    columns = 5
    rows = ceil_div(len(names), columns)
    size = (12, 3 * rows)
    shared = {"sharex": True, "sharey": True, "layout": "constrained"}
    best = [
        (budget, min(result["score"] for run, result in results.items() if run.budget == budget)) for budget in BUDGETS
    ]
    with plots.panels(path, size, rows=rows, columns=columns, **shared) as axes:
        for axis, name in itertools.zip_longest(axes.flat, names):
            axis.plot(*zip(*best, strict=True), color="C2", linewidth=5, alpha=0.3, label="best of all")
            axis.axhline(long_run["score"], color="0.4", linestyle="--", linewidth=1, label=long_name())
            for (spacing, start), style in LINES.items():
                runs = [run for run in results if (run.sampler, run.spacing, run.start) == (name, spacing, start)]
                evaluations = [results[run]["nfe"] for run in runs]
                scores = [results[run]["score"] for run in runs]
                axis.plot(evaluations, scores, marker="o", markersize=3, **style)
            axis.set(yscale="log", title=name, xticks=BUDGETS, visible=name is not None)
            axis.grid(which="both", alpha=0.3)
        figure = axes[0, 0].figure
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize=9)
        figure.supxlabel("network evaluations per image (NFE)", fontsize=10)
        figure.supylabel(f"{long_run['score_name']}, {SOLVER_SAMPLES:,} samples", fontsize=10)


PARTS = {"table": with_runs(make_table), "limits": with_runs(make_limits), "figures": with_runs(make_figures)}


if __name__ == "__main__":
    main("experiments.fashion_mnist", __doc__, PARTS, NETWORKS)
