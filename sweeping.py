"""Many evaluation runs: which ones a sweep makes, what they are compared by, and the report."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

import files
import plots
import tables
from scoring import Result, folder_name

COMPARED = 24  # how many images of a run stand in a row of a comparison


def sweep_configs(config: ConfigDict, n_steps: Sequence[int], t_starts: Sequence[int]) -> list[ConfigDict]:
    """A config for every sampler of config.sweep, n_steps and start; the start from pure noise comes first."""
    configs = []
    for sampler in config.sweep.samplers:
        for steps in n_steps:
            for t_start in (None, *t_starts):
                late = {} if t_start is None else {"t_start": t_start}
                copy = config.copy_and_resolve_references()
                copy.sampling.update(sampler=sampler, n_steps=steps, gls=t_start is not None, **late)
                configs.append(copy)
    return configs


def compare(results: Sequence[Result]) -> list[tuple[Result, Result]]:
    """For each sampler and n_steps: the run from pure noise, and the late start that scored best."""
    pairs = []
    for full in (result for result in results if not result["gls"]):
        rivals = [r for r in results if r["gls"] and all(r[key] == full[key] for key in ("sampler", "n_steps"))]
        pairs.append((full, min(rivals, key=lambda result: result["score"])))
    return pairs


def comparison_table(pairs: Sequence[tuple[Result, Result]]) -> str:
    """The paper's Table 1 with the columns that it leaves out: NFE, the start, and the gain."""
    rows = [
        [
            run["sampler"],
            str(run["n_steps"]),
            str(run["nfe"] or "adaptive"),
            str(run["t_start"]),
            f"{run['score']:.2f}",
            gain,
        ]
        for full, late in pairs
        for run, gain in ((full, ""), (late, f"{full['score'] / late['score']:.1f}x"))
    ]
    return tables.aligned(("sampler", "n", "NFE", "start", "score", "gain"), rows)


def comparison_rows(pairs: Sequence[tuple[Result, Result]], folder: Path) -> list[tuple[str, np.ndarray]]:
    """A label and the first images of every run in `pairs`."""
    rows = []
    for run in (run for pair in pairs for run in pair):
        images = files.read_npz(folder / folder_name(run) / "samples.npz", required={"images"})["images"]
        rows.append((row_label(run), images[:COMPARED]))
    return rows


def row_label(run: Result) -> str:
    return f"{run['sampler']}, n = {run['n_steps']}, from {run['t_start']}"


def save_report(results: Sequence[Result], folder: Path) -> str:
    """Writes sweep.csv, sweep.json, table.txt and comparison.png; returns the table."""
    columns = ("sampler", "n_steps", "nfe", "gls", "t_start", "score")
    files.write_text(folder / "sweep.csv", tables.to_csv(columns, [[r[name] for name in columns] for r in results]))
    files.write_json(folder / "sweep.json", {"results": list(results)})
    pairs = compare(results)
    table = comparison_table(pairs)
    files.write_text(folder / "table.txt", table + "\n")
    plots.save_comparison(folder / "comparison.png", comparison_rows(pairs, folder))
    return table
