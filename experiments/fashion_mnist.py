"""The paper's table, and every solver at equal cost, on a trained Fashion-MNIST network.

python experiments/fashion_mnist.py table | limits | figures [--config=fashion_mnist] [--workdir=PATH] [--dest=PATH]

The config is one of configs/ddpm; its runs lie in results/CONFIG and what is made of them in docs/CONFIG.

table: DDPM, DDIM and PNDM, n = 3, 5 and 10, without a late start, with the best and with `auto`, over three seeds.
limits: how far the same cells are from the network's own samples in many steps, one seed.
figures: every solver with and without a late start, its n the largest that the same number of network calls allows.
The best start is searched on noise of its own. Runs are kept below the workdir; what was interrupted goes on.
"""

import argparse
import importlib
import itertools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

import evaluation
import sampling
from core import files, plots, tables
from core.errors import UserError
from core.huge_pages import restart_with_huge_pages
from metrics import comparison, frechet, results, statistics, tally
from metrics.results import Result
from metrics.tally import Tally
from sampling.auto_grid import FINE_STEPS
from sampling.time_grid import AUTO_START

NETWORKS = ("fashion_mnist", "fashion_mnist_muon", "fashion_mnist_eps")

SEARCH_SEED = 0  # of the noise that the best start is searched on
COARSE, FINE = range(300, 901, 100), (-50, 50)  # starts tried first, and those beside the best of them

TABLE_SEEDS, TABLE_SAMPLES, TABLE_SEARCHED = (1, 2, 3), 10_000, 1500  # the last: images a start tried
# The scores on MNIST without and with a late start, from the paper's Table 1; these are the cells of the table.
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

LIMIT_SEED, LIMIT_SAMPLES = 4, 5000
# What each sampler comes to in ever more steps.
LIMITS = {"ddpm": ("ddpm", 200), "ddim": ("ipndm", 50), "pndm": ("ipndm", 50)}

SOLVER_SEED, SOLVER_SAMPLES, SOLVER_SEARCHED = 1, 2000, 500
BUDGETS = (4, 5, 6, 8, 10, 15, 20)  # network calls an image
SOLVERS = [(name, "linear") for name, solver in sampling.SAMPLERS.items() if solver.nfe(1)]
SOLVERS += [(name, "auto") for name in ("ddim", "dpmpp_2m", "unipc_3")]
REFERENCE = ("ddpm", 1000)  # what few steps are to come near to

MEASURES = ("score", "score_error", "score_at_infinity", "kid", "precision", "recall", "density", "coverage")
MEASURES += ("label_entropy", "label_distance")
COLUMNS = ("sampler", "spacing", "n_steps", "nfe", "start", "t_start", "seed", "num_samples", *MEASURES)


class Laboratory:
    """One network, the folder of its runs, and the runs that are asked of it."""

    def __init__(self, config: ConfigDict, workdir: Path):
        self.config = config
        probe = self.variant("ddim", 3, seed=0, num=2, t_start=500)
        self.bench, self.folder = evaluation.load_bench(self.config, workdir, [probe]), workdir / "experiments"

    def variant(self, sampler, n_steps, seed, num, t_start=None, spacing="linear") -> ConfigDict:
        """t_start None: without a late start."""
        config = self.config.copy_and_resolve_references()
        config.seed, config.eval.num_samples = seed, num
        config.sampling.update(sampler=sampler, n_steps=n_steps, gls=t_start is not None, spacing=spacing)
        if t_start is not None:
            config.sampling.t_start = t_start
        return config

    def score(self, *args, **kwargs) -> Result:
        return evaluation.run_once(self.variant(*args, **kwargs), self.bench, self.folder)

    def best_start(self, sampler: str, n_steps: int, num: int, spacing: str = "linear") -> int:
        scores: dict[int, float] = {}

        def best_of(starts: Iterable[int]) -> int:
            for t_start in starts:
                scores[t_start] = self.score(sampler, n_steps, SEARCH_SEED, num, t_start, spacing)["score"]
            return min(scores, key=scores.get)

        near = best_of(COARSE)
        return best_of(near + step for step in FINE)

    def images(self, *args) -> tuple[Result, Tally]:
        """A run that keeps its images, and what they leave in one pass."""
        config = self.variant(*args)
        config.eval.enable_sampling = True
        result = evaluation.run_once(config, self.bench, self.folder)
        path = self.folder / results.folder_name(result) / "samples.npz"
        return result, tally.tally_images(config, self.bench.features, self.bench.labeller, path)[0]


def row(kind: str, result: Result) -> list:
    facts = result | {"start": kind}
    return [facts[name] for name in COLUMNS]


def write_rows(path: Path, rows: Sequence[Sequence]) -> None:
    files.write_text(path, tables.to_csv(COLUMNS, rows))
    print(f"{len(rows)} runs: {path}")


# The table


def make_table(laboratory: Laboratory, dest: Path) -> None:
    cells, rows, shown = [], [], []
    for sampler, n_steps in tqdm(PAPER, "cells"):
        starts = {"full": None, "best": laboratory.best_start(sampler, n_steps, TABLE_SEARCHED), "auto": AUTO_START}
        cell = {
            kind: [laboratory.score(sampler, n_steps, seed, TABLE_SAMPLES, start) for seed in TABLE_SEEDS]
            for kind, start in starts.items()
        }
        cells.append(cell)
        rows += [row(kind, run) for kind, runs in cell.items() for run in runs]
        shown += [cell["full"][0], cell["best"][0]]
        write_rows(dest / "table.csv", rows)  # after every cell, for whoever cannot wait
    files.write_text(dest / "table.txt", "\n\n".join([score_table(cells), diversity_table(cells)]) + "\n")
    plots.save_comparison(dest / "grid.png", comparison.comparison_rows([shown], laboratory.folder))
    print((dest / "table.txt").read_text(encoding="utf-8"))


def score_table(cells: Sequence[dict[str, list[Result]]]) -> str:
    header = ("sampler", "n", "NFE", "without", "best start", "score", "gain", "auto", "score", "gain", "the paper's")
    lines = []
    for cell, (paper_without, paper_late) in zip(cells, PAPER.values(), strict=True):
        first, without = cell["full"][0], mean(run["score"] for run in cell["full"])
        line = [first["sampler"], str(first["n_steps"]), str(first["nfe"]), spread(cell["full"], "score")]
        for kind in ("best", "auto"):
            chosen = sorted({run["t_start"] for run in cell[kind]})
            gain = without / mean(run["score"] for run in cell[kind])
            line += ["/".join(map(str, chosen)), spread(cell[kind], "score"), f"{gain:.1f}x"]
        lines.append([*line, f"{paper_without / paper_late:.1f}x"])
    return tables.aligned(header, lines)


def diversity_table(cells: Sequence[dict[str, list[Result]]]) -> str:
    names = ("precision", "recall", "coverage", "label_entropy")
    lines = [
        [cell[kind][0]["sampler"], str(cell[kind][0]["n_steps"]), kind, *[spread(cell[kind], name) for name in names]]
        for cell in cells
        for kind in ("full", "best")
    ]
    return tables.aligned(("sampler", "n", "start", "precision", "recall", "coverage", "label entropy, bits"), lines)


def spread(runs: Sequence[Result], name: str) -> str:
    """Mean and standard deviation over the seeds."""
    values = [run[name] for run in runs]
    return f"{mean(values):.4g} ± {stdev(values):.1g}"


# The network's own limit


def make_limits(laboratory: Laboratory, dest: Path) -> None:
    limits = {
        name: statistics.reference_of(laboratory.images(*limit, LIMIT_SEED, LIMIT_SAMPLES)[1], laboratory.folder)
        for name, limit in LIMITS.items()
    }
    rows, lines = [], []
    for sampler, n_steps in tqdm(PAPER, "cells"):
        best = laboratory.best_start(sampler, n_steps, TABLE_SEARCHED)
        line = [sampler, str(n_steps), str(sampling.nfe(sampler, n_steps)), str(best)]
        for kind, start in {"full": None, "best": best}.items():
            run, tally = laboratory.images(sampler, n_steps, TABLE_SEEDS[0], LIMIT_SAMPLES, start)
            limit = frechet.distance(tally.groups, limits[sampler])
            rows.append([limit.value, limit.error, *row(kind, run)])
            line += [f"{run['score']:.2f} ± {run['score_error']:.1g}", f"{limit.value:.2f} ± {limit.error:.1g}"]
        lines.append(line)
        files.write_text(dest / "limits.csv", tables.to_csv(("to_limit", "to_limit_error", *COLUMNS), rows))
    header = ("sampler", "n", "NFE", "best start", "without, to data", "to limit", "with, to data", "to limit")
    files.write_text(dest / "limits.txt", tables.aligned(header, lines) + "\n")
    print((dest / "limits.txt").read_text(encoding="utf-8"))


# Every solver at equal cost


class Cell(NamedTuple):
    sampler: str
    spacing: str
    budget: int
    start: str  # "full" or "best"

    @property
    def name(self) -> str:
        return self.sampler if self.spacing == "linear" else f"{self.sampler}, {self.spacing} grid"


def make_figures(laboratory: Laboratory, dest: Path) -> None:
    runs: dict[Cell, Result] = {}
    for budget, (sampler, spacing) in tqdm(list(itertools.product(BUDGETS, SOLVERS)), "solvers"):
        n_steps = steps_within(sampler, spacing, budget)
        if not n_steps:
            continue
        best = laboratory.best_start(sampler, n_steps, SOLVER_SEARCHED, spacing)
        for kind, t_start in {"full": None, "best": best}.items():
            result = laboratory.score(sampler, n_steps, SOLVER_SEED, SOLVER_SAMPLES, t_start, spacing)
            runs[Cell(sampler, spacing, budget, kind)] = result
    long_run = laboratory.score(*REFERENCE, SOLVER_SEED, SOLVER_SAMPLES)
    write_rows(dest / "solvers.csv", [*(row(cell.start, run) for cell, run in runs.items()), row("full", long_run)])
    files.write_text(dest / "solvers.txt", best_table(runs, long_run) + "\n")
    draw_solvers(dest / "solvers.png", runs, long_run)
    print((dest / "solvers.txt").read_text(encoding="utf-8"))


def steps_within(sampler: str, spacing: str, budget: int) -> int:
    """The largest n whose network calls stay within the budget; 0 for none, or where no such grid can be chosen."""
    n_steps = max((n for n in range(1, budget + 1) if sampling.nfe(sampler, n) <= budget), default=0)
    return n_steps if spacing == "linear" or n_steps <= FINE_STEPS // 2 else 0


def best_table(runs: dict[Cell, Result], long_run: Result) -> str:
    """For every budget the best solver without and the best with a late start."""
    lines = []
    for budget in BUDGETS:
        full, late = (
            min((cell for cell in runs if (cell.budget, cell.start) == (budget, kind)), key=lambda c: runs[c]["score"])
            for kind in ("full", "best")
        )
        without, score = runs[full]["score"], runs[late]["score"]
        line = [str(budget), full.name, f"{without:.2f}", late.name, str(runs[late]["t_start"]), f"{score:.2f}"]
        lines.append([*line, f"{without / score:.2f}x"])
    header = ("NFE", "best without", "score", "best with", "start", "score", "gain")
    return tables.aligned(header, lines) + f"\n\n{long_name()}: {long_run['score']:.2f}"


def long_name() -> str:
    sampler, n_steps = REFERENCE
    return f"{sampler}, n = {n_steps}"


LINES = {  # of one solver, by grid and start
    ("linear", "full"): {"color": "C1", "label": "from pure noise"},
    ("linear", "best"): {"color": "C0", "label": "late start"},
    ("auto", "full"): {"color": "C1", "linestyle": ":", "label": "from pure noise, auto grid"},
    ("auto", "best"): {"color": "C0", "linestyle": ":", "label": "late start, auto grid"},
}


def draw_solvers(path: Path, runs: dict[Cell, Result], long_run: Result) -> None:
    """Score against network calls, a panel for every solver; in each the best of all, and many steps of DDPM."""
    names, columns = list(dict.fromkeys(cell.sampler for cell in runs)), 5
    rows = -(-len(names) // columns)
    best = [(budget, min(run["score"] for cell, run in runs.items() if cell.budget == budget)) for budget in BUDGETS]
    with plots.panels(path, (12, 3 * rows), rows, columns, sharex=True, sharey=True, layout="constrained") as axes:
        for axis, name in itertools.zip_longest(axes.flat, names):
            axis.plot(*zip(*best, strict=True), color="C2", linewidth=5, alpha=0.3, label="best of all")
            axis.axhline(long_run["score"], color="0.4", linestyle="--", linewidth=1, label=long_name())
            for line, style in LINES.items():
                own = [(run["nfe"], run["score"]) for cell, run in runs.items() if cell[:2] + cell[3:] == (name, *line)]
                axis.plot(*(zip(*own, strict=True) if own else ((), ())), marker="o", markersize=3, **style)
            axis.set(yscale="log", title=name, xticks=BUDGETS, visible=name is not None)
            axis.grid(which="both", alpha=0.3)
        figure = axes[0, 0].figure
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize=9)
        figure.supxlabel("network calls an image (NFE)", fontsize=10)
        figure.supylabel(f"{long_run['score_name']}, {SOLVER_SAMPLES:,} samples", fontsize=10)


if __name__ == "__main__":
    restart_with_huge_pages()  # as main.py does
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("table", "limits", "figures"))
    parser.add_argument("--config", choices=NETWORKS, default=NETWORKS[0])
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--dest", type=Path)
    args = parser.parse_args()
    workdir, dest = args.workdir or Path("results") / args.config, args.dest or Path("docs") / args.config
    logging.set_verbosity(logging.FATAL)  # as main.py does
    make = {"table": make_table, "limits": make_limits, "figures": make_figures}[args.part]
    try:
        make(Laboratory(importlib.import_module(f"configs.ddpm.{args.config}").get_config(), workdir), dest)
    except (UserError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; the same command goes on from what is saved\n")
