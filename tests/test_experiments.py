"""Runs the experiments on a network of few weights."""

import csv
import itertools

import numpy as np
import pytest

import run_lib
import sampling
from core import files, moments
from evaluation import EvalRun
from experiments import fashion_mnist, regret
from metrics import frechet


@pytest.fixture
def experiment(config, tmp_path, train_once, shipped_classifier, monkeypatch):
    """An experiment of two cells, three solvers and two budgets, with few images."""
    config.training.n_iters = 1
    config.training.snapshot_sampling = False
    train_once(config, tmp_path / "run")
    run_lib.fid_stats(config)
    for name, value in {
        "PAPER": {("ddim", 2): (6.0, 3.0), ("pndm", 2): (8.0, 2.0)},
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
        monkeypatch.setattr(fashion_mnist, name, value)
    return fashion_mnist.Experiment(config, tmp_path / "run")


def read(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_table_has_every_cell_on_the_same_noise(experiment, tmp_path):
    """Would catch a search on the noise of the scores, the worst start in place of the best, and an inverted gain."""
    fashion_mnist.make_table(experiment, tmp_path)
    rows = read(tmp_path / "table.csv")
    assert len(rows) == 2 * 3 * 3
    for sampler in ("ddim", "pndm"):
        for kind in ("full", "best", "auto"):
            cell = [row for row in rows if (row["sampler"], row["start"]) == (sampler, kind)]
            assert [row["seed"] for row in cell] == ["1", "2", "3"]
        best = {int(row["t_start"]) for row in rows if (row["sampler"], row["start"]) == (sampler, "best")}
        paths = experiment.folder.glob(f"{sampler}_n2_gls*_num12_seed0/result.json")
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


def test_limits_are_distances_between_samples(experiment, tmp_path):
    """Would catch a distance to the data or to another sampler's limit, equal noise on both sides, and other images."""
    fashion_mnist.make_limits(experiment, tmp_path)
    rows = read(tmp_path / "limits.csv")
    assert [(row["sampler"], row["start"]) for row in rows] == list(
        itertools.product(("ddim", "pndm"), ("full", "best"))
    )

    def feature_moments(name):
        images = files.read_npz(experiment.folder / name / "samples.npz", required={"images"})["images"]
        return moments.Moments(64).update(np.asarray(experiment.context.features.extract(images)))

    for row, limit in zip(rows, ["ddpm_n3", "ddpm_n3", "ipndm_n4", "ipndm_n4"], strict=True):
        start = "full" if row["start"] == "full" else f"gls{row['t_start']}"
        run = feature_moments(f"{row['sampler']}_n2_{start}_step1_num20_seed1")
        limit_run = feature_moments(f"{limit}_full_step1_num20_seed4")
        expected = frechet.frechet_distance(run.mean, run.cov, limit_run.mean, limit_run.cov)
        assert float(row["to_limit"]) == pytest.approx(expected, rel=1e-6) != float(row["score"])
    assert len((tmp_path / "limits.txt").read_text(encoding="utf-8").splitlines()) == 2 + 2


def test_solvers_are_compared_at_equal_cost(experiment, tmp_path):
    """Would catch more network evaluations than the budget allows, and a missing solver."""
    fashion_mnist.make_figures(experiment, tmp_path)
    *rows, long_run = read(tmp_path / "solvers.csv")
    assert (long_run["sampler"], long_run["n_steps"]) == ("ddpm", "20")
    found = [(row["sampler"], row["nfe"], row["spacing"]) for row in rows if row["start"] == "full"]
    assert found == [
        ("ddim", "4", "linear"),
        ("heun", "3", "linear"),
        ("pndm", "4", "auto"),
        ("ddim", "5", "linear"),
        ("heun", "5", "linear"),
        ("pndm", "4", "auto"),
    ]
    assert [row["start"] for row in rows] == ["full", "best"] * 6
    assert (tmp_path / "solvers.png").exists()
    assert len((tmp_path / "solvers.txt").read_text(encoding="utf-8").splitlines()) == 2 + 2 + 2


def test_steps_within_a_budget():
    """Would catch one step too many or too few."""
    for name, solver in sampling.SAMPLERS.items():
        if solver.nfe(1):
            n_steps = fashion_mnist.steps_within(name, "linear", 15)
            assert solver.nfe(n_steps) <= 15 < solver.nfe(n_steps + 1)
    assert fashion_mnist.steps_within("pndm", "linear", 3) == 0
    assert [fashion_mnist.steps_within("ddim", "auto", budget) for budget in (15, 16)] == [15, 0]


def test_regret_compares_the_automatic_start_with_the_best(experiment, tmp_path, monkeypatch):
    """Would catch scores unlike those of eval, a search for another number of images, and the worst start as best."""
    starts = (300, 500, 700)
    monkeypatch.setattr(regret, "STARTS", starts)
    context = experiment.context
    config = experiment.variant("ddim", 2, seed=3, num=40, t_start=500)
    swept = regret.sweep(config, context)
    cell = regret.measure(config, context, swept, evaluated=600)

    scores = {start: experiment.score("ddim", 2, seed=3, num=40, t_start=start)["score"] for start in starts}
    assert swept == pytest.approx({str(start): score for start, score in scores.items()}, rel=1e-6)
    assert cell["best"] == min(scores, key=scores.get) and cell["best_score"] == swept[str(cell["best"])]
    auto_config = experiment.variant("ddim", 2, seed=3, num=600, t_start=-1)
    timesteps, chosen = EvalRun(auto_config, context).plan()
    assert (cell["auto"], cell["share_of_evaluation"]) == (timesteps[0], chosen.share)
    auto_score = experiment.score("ddim", 2, seed=3, num=40, t_start=cell["auto"])["score"]
    assert cell["regret"] == pytest.approx(auto_score / min(scores.values()) - 1, abs=1e-6)

    regret.report([cell, cell | {"regret": 0.5}, cell | {"regret": 0.25}], tmp_path / "regret")
    assert [row["best"] for row in read(tmp_path / "regret.csv")] == 3 * [str(cell["best"])]
    median = sorted([cell["regret"], 0.25, 0.5])[1]
    last = (tmp_path / "regret.txt").read_text(encoding="utf-8").splitlines()[-1]
    assert f"median {median:.1%}" in last
