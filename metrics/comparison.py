"""Comparison of the runs of a sweep: table, CSV, JSON and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from core import files, plots, tables
from core.shapes import HostPixels
from metrics import explorer, figures
from metrics.results import Result, folder_name

COMPARED = 24  # images of a run in a row of the picture

PURE_NOISE = (False, "", False)
"""The kind of start (gls, baseline, chooses_start) of a run from pure noise."""


def compare(results: Sequence[Result]) -> list[list[Result]]:
    """A cell for each sampler and n_steps: the run from pure noise, then the best run of each other kind of start."""
    cells: dict[tuple, dict[tuple, Result]] = {}
    for run in results:
        kinds = cells.setdefault((run["sampler"], run["n_steps"]), {})
        kind = (run["gls"], run["baseline"], run["chooses_start"])
        if kind not in kinds or run["score"] < kinds[kind]["score"]:
            kinds[kind] = run
    return [[kinds[PURE_NOISE], *(kinds[kind] for kind in kinds if kind != PURE_NOISE)] for kinds in cells.values()]


def comparison_table(cells: Sequence[Sequence[Result]]) -> str:
    """The paper's Table 1 with three more columns: NFE, the start, and the factor by which the score falls."""
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


def comparison_rows(cells: Sequence[Sequence[Result]], folder: Path) -> list[tuple[str, HostPixels]]:
    """A label and the first COMPARED images for each run in the cells; `folder` holds the folders of the runs."""
    rows = []
    for cell in cells:
        for run in cell:
            images = files.read_npz(folder / folder_name(run) / "samples.npz", required={"images"})["images"]
            rows.append((row_label(run), images[:COMPARED]))
    return rows


def row_label(run: Result) -> str:
    """The label of a run in a picture: sampler, n and start."""
    return f"{run['sampler']}, n = {run['n_steps']}, from {start_label(run)}"


def start_label(run: Result) -> str:
    """The time of the start, with the baseline, and with "auto" for an automatic start."""
    return f"{run['t_start']} {run['baseline']} {'auto' if run['chooses_start'] else ''}".strip()


def save_report(results: Sequence[Result], folder: Path, critical: Mapping[str, float]) -> str:
    """Writes sweep.csv, sweep.json, table.txt, comparison.png, starts.png and explorer.html; returns the table.

    starts.png shows the scores against the start. critical: times that are marked in it, by their labels.
    """
    columns = ("sampler", "n_steps", "nfe", "gls", "baseline", "chooses_start", "t_start", "score")
    values = [[run[name] for name in columns] for run in results]
    files.write_text(folder / "sweep.csv", tables.to_csv(columns, values))
    files.write_json(folder / "sweep.json", {"results": list(results)})
    cells = compare(results)
    table = comparison_table(cells)
    files.write_text(folder / "table.txt", table + "\n")
    plots.save_comparison(folder / "comparison.png", comparison_rows(cells, folder))
    figures.draw_scores(folder / "starts.png", results, critical)
    explorer.save_explorer(folder / "explorer.html", results, folder)
    return table
