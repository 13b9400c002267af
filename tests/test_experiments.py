"""The table and the comparison of solvers, on a network of a few weights."""

import csv
import itertools
import runpy

import numpy as np
import pytest

import evaluation
import run_lib
import sampling
from core import files, moments
from metrics import frechet

EXPERIMENT, REGRET = (
    runpy.run_path(str(files.REPOSITORY / f"experiments/{name}.py"), run_name="experiment")
    for name in ("fashion_mnist", "regret")
)


@pytest.fixture
def laboratory(config, tmp_path, shipped_classifier, monkeypatch):
    """Two cells, two solvers and two budgets at small numbers; and what they are asked for in `names`."""
    config.training.n_iters = 1
    config.training.snapshot_sampling = False
    run_lib.train(config, tmp_path / "run")
    run_lib.fid_stats(config)
    names = EXPERIMENT["make_table"].__globals__
    monkeypatch.setitem(names, "PAPER", {("ddim", 2): (6.0, 3.0), ("pndm", 2): (8.0, 2.0)})
    for name, value in {
        "TABLE_SAMPLES": 12,
        "TABLE_SEARCHED": 12,
        "SOLVER_SAMPLES": 12,
        "SOLVER_SEARCHED": 12,
        "LIMIT_SAMPLES": 20,
        "LIMITS": {"ddim": ("ddpm", 3), "pndm": ("ipndm", 4)},
        "COARSE": (300, 400),
        "BUDGETS": (4, 5),
        "SOLVERS": [("ddim", "linear"), ("heun", "linear"), ("pndm", "auto")],
        "REFERENCE": ("ddpm", 20),
    }.items():
        monkeypatch.setitem(names, name, value)
    return EXPERIMENT["Laboratory"](config, tmp_path / "run")


def read(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_table_has_every_cell_on_the_same_noise(laboratory, tmp_path):
    """A start searched on the noise that it is scored on, or the worst of them; other seeds; a gain upside down."""
    EXPERIMENT["make_table"](laboratory, tmp_path)
    rows = read(tmp_path / "table.csv")
    assert len(rows) == 2 * 3 * 3
    for sampler in ("ddim", "pndm"):
        for kind in ("full", "best", "auto"):
            cell = [row for row in rows if (row["sampler"], row["start"]) == (sampler, kind)]
            assert [row["seed"] for row in cell] == ["1", "2", "3"]
        best = {int(row["t_start"]) for row in rows if (row["sampler"], row["start"]) == (sampler, "best")}
        paths = laboratory.folder.glob(f"{sampler}_n2_gls*_num12_seed0/result.json")
        searched = {run["t_start"]: run["score"] for run in map(files.read_json, paths)}
        assert {300, 400} < searched.keys() and best == {min(searched, key=searched.get)}
    lines = (tmp_path / "table.txt").read_text(encoding="utf-8").splitlines()
    assert lines[2].split()[:3] == ["ddim", "2", "2"] and lines[2].endswith("2.0x") and lines[3].endswith("4.0x")
    full, best = (
        [float(row["score"]) for row in rows if (row["sampler"], row["start"]) == ("ddim", kind)]
        for kind in ("full", "best")
    )
    assert f"{sum(full) / sum(best):.1f}x" in lines[2].split()
    assert (tmp_path / "grid.png").exists()


def test_limits_are_distances_between_samples(laboratory, tmp_path):
    """A distance to the data or to another sampler's limit, one noise for both, or another start's images."""
    EXPERIMENT["make_limits"](laboratory, tmp_path)
    rows = read(tmp_path / "limits.csv")
    assert [(row["sampler"], row["start"]) for row in rows] == list(
        itertools.product(("ddim", "pndm"), ("full", "best"))
    )

    def features(name):
        images = files.read_npz(laboratory.folder / name / "samples.npz", required={"images"})["images"]
        return moments.Moments(64).update(np.asarray(laboratory.bench.features.extract(images)))

    for row, limit in zip(rows, ["ddpm_n3", "ddpm_n3", "ipndm_n4", "ipndm_n4"], strict=True):
        start = "full" if row["start"] == "full" else f"gls{row['t_start']}"
        names = f"{row['sampler']}_n2_{start}_step1_num20_seed1", f"{limit}_full_step1_num20_seed4"
        (mean1, cov1), (mean2, cov2) = ((found.mean, found.cov) for found in map(features, names))
        expected = frechet.frechet_distance(mean1, cov1, mean2, cov2)
        assert float(row["to_limit"]) == pytest.approx(expected, rel=1e-6) != float(row["score"])
    assert len((tmp_path / "limits.txt").read_text(encoding="utf-8").splitlines()) == 2 + 2


def test_solvers_are_compared_at_equal_cost(laboratory, tmp_path):
    """More network calls than the budget has, a solver left out, or one that the budget is too small for."""
    EXPERIMENT["make_figures"](laboratory, tmp_path)
    *rows, long_run = read(tmp_path / "solvers.csv")
    assert (long_run["sampler"], long_run["n_steps"]) == ("ddpm", "20")
    found = [(row["sampler"], row["nfe"], row["spacing"]) for row in rows if row["start"] == "full"]
    at_four, at_five = [("ddim", "4"), ("heun", "3"), ("pndm", "4")], [("ddim", "5"), ("heun", "5"), ("pndm", "4")]
    grids = ["linear", "linear", "auto"] * 2
    assert found == [(*facts, grid) for facts, grid in zip(at_four + at_five, grids, strict=True)]
    assert [row["start"] for row in rows] == ["full", "best"] * 6
    assert (tmp_path / "solvers.png").exists()
    assert len((tmp_path / "solvers.txt").read_text(encoding="utf-8").splitlines()) == 2 + 2 + 2


def test_steps_within_a_budget():
    """One step too many or too few."""
    for name, solver in sampling.SAMPLERS.items():
        if solver.nfe(1):
            n_steps = EXPERIMENT["steps_within"](name, "linear", 15)
            assert solver.nfe(n_steps) <= 15 < solver.nfe(n_steps + 1)
    assert EXPERIMENT["steps_within"]("pndm", "linear", 3) == 0
    assert [EXPERIMENT["steps_within"]("ddim", "auto", budget) for budget in (15, 16)] == [15, 0]


def test_regret_is_what_the_chosen_start_scores_over_the_best(laboratory, tmp_path, monkeypatch):
    """Scores that are not those of eval, a trial for another size, or the worst start for the best."""
    starts = (300, 500, 700)
    monkeypatch.setitem(REGRET["sweep"].__globals__, "STARTS", starts)
    config = laboratory.variant("ddim", 2, seed=3, num=40, t_start=500)
    swept = REGRET["sweep"](config, laboratory.bench)
    cell = REGRET["measure"](config, laboratory.bench, swept, 600)

    scores = {start: laboratory.score("ddim", 2, seed=3, num=40, t_start=start)["score"] for start in starts}
    assert swept == pytest.approx({str(start): score for start, score in scores.items()}, rel=1e-6)
    assert cell["best"] == min(scores, key=scores.get) and cell["best_score"] == swept[str(cell["best"])]
    asked = laboratory.variant("ddim", 2, seed=3, num=600, t_start=-1)
    choice = evaluation.plan(asked, laboratory.bench)[1]
    assert (cell["auto"], cell["share_of_evaluation"]) == (choice.timesteps[0], choice.share)
    chosen = laboratory.score("ddim", 2, seed=3, num=40, t_start=cell["auto"])["score"]
    assert cell["regret"] == pytest.approx(chosen / min(scores.values()) - 1, abs=1e-6)

    REGRET["report"]([cell, cell | {"regret": 0.5}, cell | {"regret": 0.25}], tmp_path / "regret")
    assert [row["best"] for row in read(tmp_path / "regret.csv")] == 3 * [str(cell["best"])]
    median = sorted([cell["regret"], 0.25, 0.5])[1]
    last = (tmp_path / "regret.txt").read_text(encoding="utf-8").splitlines()[-1]
    assert f"median {median:.1%}" in last
