"""Comparison of the runs of a sweep: table, CSV, JSON and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from core import files, plots, tables
from core.shapes import HostPixels
from metrics import explorer, figures
from metrics.results import Result, components_label, folder_name
from sampling.late_start import ONE

COMPARED = 24  # images per row of the picture; each run has one row


def compare(results: Sequence[Result]) -> list[list[Result]]:
    """For each sampler and n_steps (a cell), the best run of each kind of start; starts from pure noise come first."""
    cells: dict[tuple, dict[tuple, Result]] = {}
    for run in results:
        kinds = cells.setdefault((run["sampler"], run["n_steps"]), {})
        kind = (run["gls"], run.get("components"), run["baseline"], run["chooses_start"])
        if kind not in kinds or run["score"] < kinds[kind]["score"]:
            kinds[kind] = run
    return [sorted(kinds.values(), key=lambda run: (run["gls"], not is_pure_noise(run))) for kinds in cells.values()]


def gain(run: Result, cell: Sequence[Result]) -> float | None:
    """The best score of the cell's runs from pure noise divided by the run's score; None for runs from pure noise."""
    return None if is_pure_noise(run) else min(other["score"] for other in cell if is_pure_noise(other)) / run["score"]


def is_pure_noise(run: Result) -> bool:
    """Whether a run starts from pure noise, at T - 1 or at T - T/n, and uses only the network's predictions."""
    return not run["gls"] and run["baseline"] in ("", "leading")


def comparison_table(cells: Sequence[Sequence[Result]]) -> str:
    """The paper's Table 1 with three more columns: NFE, start and `gain`."""
    rows = [
        [
            run["sampler"],
            str(run["n_steps"]),
            "adaptive" if run["nfe"] is None else str(run["nfe"]),
            start_label(run),
            f"{run['score']:.2f}",
            f"{factor:.1f}x" if (factor := gain(run, cell)) else "",
        ]
        for cell in cells
        for run in cell
    ]
    return tables.aligned(("sampler", "n", "NFE", "start", "score", "gain"), rows)


def comparison_rows(cells: Sequence[Sequence[Result]], folder: Path) -> list[tuple[str, HostPixels]]:
    """The label and the first COMPARED images of each run in the cells. `folder` contains the folders of the runs."""
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
    """The start in words: its time, the components of a mixture, the baseline, and "auto" for an automatic start."""
    parts = [str(run["t_start"]), components_label(run), run["baseline"], "auto" if run["chooses_start"] else ""]
    return " ".join(filter(None, parts))


def save_report(results: Sequence[Result], folder: Path, critical: Mapping[str, float]) -> str:
    """Writes sweep.csv, sweep.json, table.txt, comparison.png, starts.png and explorer.html; returns the table.

    starts.png shows the scores against the start. critical: labels and times that are marked in starts.png.
    """
    columns = ("sampler", "n_steps", "nfe", "gls", "components", "baseline", "chooses_start", "t_start", "score")
    values = [[({"components": ONE} | run)[name] for name in columns] for run in results]
    files.write_text(folder / "sweep.csv", tables.to_csv(columns, values))
    files.write_json(folder / "sweep.json", {"results": list(results)})
    cells = compare(results)
    table = comparison_table(cells)
    files.write_text(folder / "table.txt", table + "\n")
    plots.attempt(_draw_comparison, folder / "comparison.png", cells)
    plots.attempt(figures.draw_scores, folder / "starts.png", results, critical)
    plots.attempt(explorer.save_explorer, folder / "explorer.html", results, folder)
    return table


def _draw_comparison(path: Path, cells: Sequence[Sequence[Result]]) -> None:
    plots.save_comparison(path, comparison_rows(cells, path.parent))
