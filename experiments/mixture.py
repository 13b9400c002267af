"""Late starts from mixtures against pure noise and the single Gaussian, and how near their samples are to the data.

python -m experiments.mixture table | copying | flow [--config=digits] [--workdir=PATH] [--dest=PATH]

--config names a file of configs/ddpm. Its runs are in results/CONFIG, tables and pictures in docs/CONFIG. The mixtures
must be fitted before: --mode=fid_stats --config.sweep.components="('1','labels','10','40')".

table: every solver of SOLVERS with every n of STEPS, from pure noise at T - 1 and at T - T/n, and from the best late
start of each of COMPONENTS. The best start is searched on noise of another seed; three seeds are scored.
copying: for each of COMPONENTS, distances of samples to their nearest training images, against those of held-out images
and of samples in many steps; precision, recall and coverage; the mixture without a network; held-out likelihoods.
flow: for each of COMPONENTS, starts drawn from the mixture against starts on its probability-flow ODE.

Runs are kept below the workdir, and the same command continues after an interruption.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from tqdm import tqdm

from core import plots, tables
from experiments.runs import Experiment, row, spread, write_and_print, write_rows
from metrics.results import Result
from sampling.late_start import LABELS, ONE

NETWORKS = ("digits", "fashion_mnist", "fashion_mnist_eps")
COMPONENTS = (ONE, LABELS, "10", "40")
SOLVERS = ("ddpm", "ddim", "pndm", "dpmpp_2m", "unipc_3", "ipndm")
STEPS = (3, 4, 5, 6, 8, 10)
SEEDS = (1, 2, 3)
SAMPLES = 10_000
SEARCHED = 1500  # images per start in the search
STARTS = (150, 200, 250, 300, 400, 500, 600, 700)  # tried first; then their neighbours
PURE_NOISE = ("pure noise", "leading")
MARKERS = {LABELS: "s", ONE: "o"}

Cell = Mapping[str, Sequence[Result]]
"""The runs of one solver and n, one per seed, by the kind of start: one of PURE_NOISE or of COMPONENTS."""


def make_table(experiment: Experiment, dest: Path) -> None:
    """Writes mixture.csv, mixture.txt and mixture.png."""
    cells = []
    rows = []
    for sampler, n_steps in tqdm(list(itertools.product(SOLVERS, STEPS)), "cells"):
        cells.append(cell := score_cell(experiment, sampler, n_steps))
        rows += [row(kind, run) for kind, runs in cell.items() for run in runs]
        write_rows(dest / "mixture.csv", rows)  # after every cell, so that it can be read before all are finished
    draw_cells(dest / "mixture.png", cells)
    write_and_print(dest / "mixture.txt", cells_table(cells))


def score_cell(experiment: Experiment, sampler: str, n_steps: int) -> Cell:
    """The runs of all kinds of start, on the same noise."""
    starts: dict[str, dict[str, Any]] = {"pure noise": {}, "leading": {"baseline": "leading"}}
    for components in COMPONENTS:
        fixed = {"components": components}
        best = experiment.best_start(sampler, n_steps, num=SEARCHED, coarse=STARTS, **fixed)
        starts[components] = {"t_start": best, **fixed}
    return {
        kind: [experiment.score(sampler, n_steps, seed=seed, num=SAMPLES, **settings) for seed in SEEDS]
        for kind, settings in starts.items()
    }


def cells_table(cells: Sequence[Cell]) -> str:
    """The scores of each cell, with the chosen starts, and the gain of the best mixture over other starts."""
    late = [f"{kind} {part}" for kind in map(kind_name, COMPONENTS) for part in ("from", "score")]
    header = ("sampler", "n", "NFE", "999", "T - T/n", *late, "over noise", "over Gaussian")
    lines = []
    for cell in cells:
        first = cell["pure noise"][0]
        line = [first["sampler"], str(first["n_steps"]), str(first["nfe"])]
        line += [spread(cell[kind], "score") for kind in PURE_NOISE]
        for components in COMPONENTS:
            line += [str(cell[components][0]["t_start"]), spread(cell[components], "score")]
        scores = {kind: mean(run["score"] for run in runs) for kind, runs in cell.items()}
        best = min(score for kind, score in scores.items() if kind not in (*PURE_NOISE, ONE))
        noise = min(scores[kind] for kind in PURE_NOISE)
        lines.append([*line, f"{noise / best:.1f}x", f"{scores[ONE] / best:.1f}x"])
    return tables.aligned(header, lines)


def kind_name(components: str) -> str:
    """The components of a start as tables name them."""
    return {ONE: "Gaussian", LABELS: "labels"}.get(components, f"{components} clusters")


def draw_cells(path: Path, cells: Sequence[Cell]) -> None:
    """Score against network evaluations, one panel per solver, one line per kind of start."""
    solvers = list(dict.fromkeys(cell["pure noise"][0]["sampler"] for cell in cells))
    size = (3.2 * len(solvers), 3.4)
    shared = {"sharex": True, "sharey": True, "layout": "constrained"}
    with plots.panels(path, size, rows=1, columns=len(solvers), **shared) as [axes]:
        for axis, solver in zip(axes, solvers, strict=True):
            own = [cell for cell in cells if cell["pure noise"][0]["sampler"] == solver]
            for kind in own[0]:
                evaluations = [cell[kind][0]["nfe"] for cell in own]
                scores = [mean(run["score"] for run in cell[kind]) for cell in own]
                label = kind if kind in PURE_NOISE else kind_name(kind)
                style = {"linestyle": ":" if kind in PURE_NOISE else "-", "marker": MARKERS.get(kind, "^")}
                axis.plot(evaluations, scores, markersize=4, label=label, **style)
            axis.set(yscale="log", title=solver, xlabel="network evaluations")
            axis.grid(which="both", alpha=0.3)
        axes[0].set_ylabel(f"{cells[0]['pure noise'][0]['score_name']}, {SAMPLES:,} samples")
        axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize=9)
