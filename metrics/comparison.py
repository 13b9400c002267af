"""Comparison of the runs of a sweep: table, CSV, JSON and pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from core import files, plots, tables
from metrics import figures
from metrics.results import Result, folder_name

COMPARED = 24  # how many images of a run stand in a row of a comparison


def compare(results: Sequence[Result]) -> list[list[Result]]:
    """For each sampler and n_steps: the run from pure noise, then the best of every other kind of start."""
    cells: dict[tuple, dict[tuple, Result]] = {}
    for run in results:
        kinds = cells.setdefault((run["sampler"], run["n_steps"]), {})
        kind = run["gls"], run["baseline"], run["chooses_start"]
        if kind not in kinds or run["score"] < kinds[kind]["score"]:
            kinds[kind] = run
    full_start = False, "", False
    return [[kinds[full_start], *[kinds[kind] for kind in kinds if kind != full_start]] for kinds in cells.values()]


def comparison_table(cells: Sequence[Sequence[Result]]) -> str:
    """The paper's Table 1 with the columns that it leaves out: NFE, the start, and the gain."""
    rows = [
        [
            run["sampler"],
            str(run["n_steps"]),
            "adaptive" if run["nfe"] is None else str(run["nfe"]),
            start_label(run),
            f"{run['score']:.2f}",
            "" if run is full else f"{full['score'] / run['score']:.1f}x",
        ]
        for full, *others in cells
        for run in (full, *others)
    ]
    return tables.aligned(("sampler", "n", "NFE", "start", "score", "gain"), rows)


def comparison_rows(cells: Sequence[Sequence[Result]], folder: Path) -> list[tuple[str, np.ndarray]]:
    """A label and the first images of every run in `cells`."""
    rows = []
    for run in (run for cell in cells for run in cell):
        images = files.read_npz(folder / folder_name(run) / "samples.npz", required={"images"})["images"]
        rows.append((row_label(run), images[:COMPARED]))
    return rows


def row_label(run: Result) -> str:
    return f"{run['sampler']}, n = {run['n_steps']}, from {start_label(run)}"


def start_label(run: Result) -> str:
    return f"{run['t_start']} {run['baseline']} {'auto' if run['chooses_start'] else ''}".strip()


def save_report(results: Sequence[Result], folder: Path, critical: plots.Times) -> str:
    """Writes sweep.csv, sweep.json, table.txt, comparison.png and starts.png; returns the table.

    critical: the times to be marked in the figure of scores against the start.
    """
    columns = ("sampler", "n_steps", "nfe", "gls", "baseline", "chooses_start", "t_start", "score")
    files.write_text(folder / "sweep.csv", tables.to_csv(columns, [[r[name] for name in columns] for r in results]))
    files.write_json(folder / "sweep.json", {"results": list(results)})
    cells = compare(results)
    table = comparison_table(cells)
    files.write_text(folder / "table.txt", table + "\n")
    plots.save_comparison(folder / "comparison.png", comparison_rows(cells, folder))
    figures.draw_scores(folder / "starts.png", results, critical)
    return table
