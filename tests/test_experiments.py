"""Runs the experiments on a small network."""

import csv
import itertools

import numpy as np
import pytest
from PIL import Image

import datasets
import run_lib
import sampling
from configs.ddpm import emoji as emoji_config
from core import files, moments, plots
from core.files import REPOSITORY
from evaluation import EvalRun
from experiments import copies, diversity, fashion_mnist, features, mixture, pictures, regret, runs
from images.emoji import read_emoji
from metrics import frechet


@pytest.fixture
def experiment(config, tmp_path, train_once, shipped_classifier, monkeypatch):
    """Returns an experiment with two cells, three solvers, two budgets and few images."""
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
        "BUDGETS": (4, 5),
        "SOLVERS": [("ddim", "linear"), ("heun", "linear"), ("pndm", "auto")],
        "REFERENCE": ("ddpm", 20),
    }.items():
        monkeypatch.setattr(fashion_mnist, name, value)
    monkeypatch.setattr(runs, "COARSE", (300, 400))
    return fashion_mnist.Experiment(config, tmp_path / "run")


def read(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_table_has_every_cell_on_the_same_noise(experiment, tmp_path):
    """Catches a search on the noise of the scores, the worst start instead of the best, and an inverted gain."""
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
    """Catches a distance to the data or to the limit of another sampler, and equal noise on both sides."""
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
    """Catches more network evaluations than the budget allows, and a missing solver."""
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
    """Catches one step too many or too few."""
    for name, solver in sampling.SAMPLERS.items():
        if solver.nfe(1):
            n_steps = fashion_mnist.steps_within(name, "linear", 15)
            assert solver.nfe(n_steps) <= 15 < solver.nfe(n_steps + 1)
    assert fashion_mnist.steps_within("pndm", "linear", 3) == 0
    assert [fashion_mnist.steps_within("ddim", "auto", budget) for budget in (15, 16)] == [15, 0]


def test_regret_compares_the_automatic_start_with_the_best(experiment, tmp_path):
    """Catches scores unlike those of eval, a search for another number of images, and the worst start as best."""
    starts = (300, 500, 700)
    context = experiment.context
    config = experiment.variant("ddim", 2, seed=3, num=40, t_start=500)
    swept = regret.sweep(config, context, starts)
    cell = regret.measure(config, context, swept, evaluated=600)

    scores = {start: experiment.score("ddim", 2, seed=3, num=40, t_start=start)["score"] for start in starts}
    assert swept == pytest.approx({str(start): score for start, score in scores.items()}, rel=1e-6)
    assert cell["best"] == min(scores, key=scores.get) and cell["best_score"] == swept[str(cell["best"])]
    auto_config = experiment.variant("ddim", 2, seed=3, num=600, t_start=-1)
    timesteps, chosen = EvalRun(auto_config, context).plan()
    assert cell["auto"] == timesteps[0]
    assert cell["share_of_evaluation"] > chosen.share > 0  # the second choice uses the reference images of the first
    auto_score = experiment.score("ddim", 2, seed=3, num=40, t_start=cell["auto"])["score"]
    assert cell["regret"] == pytest.approx(auto_score / min(scores.values()) - 1, abs=1e-6)

    regret.report([cell, cell | {"regret": 0.5}, cell | {"regret": 0.25}], tmp_path / "regret")
    assert [row["best"] for row in read(tmp_path / "regret.csv")] == 3 * [str(cell["best"])]
    median = sorted([cell["regret"], 0.25, 0.5])[1]
    last = (tmp_path / "regret.txt").read_text(encoding="utf-8").splitlines()[-1]
    assert f"median {median:.1%}" in last


@pytest.fixture
def emoji_run(config, tmp_path, monkeypatch):
    """Returns a config of a few emoji of 8x8, and the workdir of a small network that was trained on them."""
    emoji = emoji_config.get_config()
    emoji.model.update(config.model)
    emoji.training.update(config.training)
    emoji.training.update(n_iters=1, snapshot_sampling=False)
    emoji.data.update(path=str(REPOSITORY / "tests/data/emoji_font.ttf"), image_size=8, held_out=0.4)
    emoji.data.cache_dir = config.data.cache_dir
    emoji.assets_dir = config.assets_dir
    emoji.eval.enable_fid = False
    run_lib.train(emoji, tmp_path / "run")
    run_lib.fid_stats(emoji)
    for name, value in {"CELLS": [("ddim", 2)], "STARTS": (None, 300), "REFERENCE_RUN": ("ddim", 3)}.items():
        monkeypatch.setattr(diversity, name, value)
    for name, value in {"SAMPLES": 12, "RESAMPLED": 4, "TRAINING_IMAGES": 1280, "SEEDS": (1, 2)}.items():
        monkeypatch.setattr(diversity, name, value)
    monkeypatch.setattr(copies, "SAMPLES", 12)
    monkeypatch.setattr(copies, "RUNS", (("ddim", 2, None, "1"), ("ddim", 2, 300, "1")))
    return emoji, tmp_path / "run"


def test_shares_of_generated_emoji(emoji_run, tmp_path):
    """Catches a run that is missing, a share without an error, and shares that do not sum to 1."""
    diversity.shares(*emoji_run, tmp_path)
    rows = read(tmp_path / "shares.csv")
    starts = [("2", "999"), ("2", "300"), ("3", "999")]
    assert [(row["n_steps"], row["start"]) for row in rows] == [start for start in starts for _ in range(2)]
    for row in rows:
        assert sum(float(row[name]) for name in diversity.LABELS) == pytest.approx(1)
        assert all(f"{name}, error" in row for name in diversity.LABELS)
    assert (tmp_path / "shares.png").exists()
    assert "few dark people" not in (tmp_path / "shares.txt").read_text(encoding="utf-8")


def toned(shares, rng, count):
    """Draws labels of people with these shares of the five skin tones."""
    return diversity.FIRST_TONE + rng.choice(5, count, p=shares)


def test_shares_are_measured_through_a_classifier_that_errs(rng):
    """Catches uncorrected shares, errors without that of the confusion, and people without a tone among the tones."""
    confusion = 0.7 * np.eye(5) + 0.3 * np.roll(np.eye(5), 1, axis=1)

    def classified(labels):
        drawn = [rng.choice(5, p=confusion[label - diversity.FIRST_TONE]) for label in labels]
        return diversity.FIRST_TONE + np.array(drawn)

    labels = toned(np.full(5, 0.2), rng, 2000)
    real = diversity.Labelled(None, labels, np.arange(2000) // 5, classified(labels), [])
    data = diversity.shares_of(labels)
    true = np.array([0.6, 0.1, 0.1, 0.1, 0.1])
    found = diversity.measure(real, classified(toned(true, rng, 4000))[None], data)
    np.testing.assert_allclose(found.shares[diversity.TONES], true, atol=0.05)
    assert found.assigned[diversity.TONES][0] < 0.5
    assert found.measures.tone_distance == pytest.approx(0.4, abs=0.05) and found.measures.group_distance == 0
    assert 0.005 < found.errors.tone_distance < 0.05


def test_every_emoji_is_labelled_by_a_classifier_that_has_not_seen_it(emoji_run, tmp_path):
    """Catches a base in two folds, shifts that wrap around the edges, and predictions of the wrong classifier."""
    labelled = diversity.load_labelled(emoji_run[0], tmp_path)
    emoji, images = read_emoji(REPOSITORY / "tests/data/emoji_font.ttf", 8)
    np.testing.assert_array_equal(labelled.images, images)
    for fold, network in enumerate(labelled.classifiers):
        own = labelled.bases % diversity.FOLDS == fold
        predicted = diversity.predict(labelled._replace(classifiers=[network]), images[own])
        np.testing.assert_array_equal(predicted[0], labelled.predicted[own])
    for one, base, label in zip(emoji, labelled.bases, labelled.labels, strict=True):
        assert {other.base for other, index in zip(emoji, labelled.bases, strict=True) if index == base} == {one.base}
        assert (diversity.LABELS[label].startswith("people")) == (one.group == diversity.PEOPLE)
    moved = diversity.shifted(images, 2, -1)
    np.testing.assert_array_equal(moved[:, 2:, :-1], images[:, :-2, 1:])
    assert (moved[:, :2] == 255).all() and (moved[:, :, -1] == 255).all()


def test_copies_are_found(emoji_run, tmp_path, rng):
    """Catches a distance that loses small differences, and a wrong training picture beside a picture."""
    training = rng.integers(0, 256, (50, 8, 8, 3), np.uint8)
    altered = training[[7, 3]]
    altered[1, 0, 0, 0] ^= 1
    found, distances = copies.nearest(altered, training)
    assert found.tolist() == [7, 3] and distances == pytest.approx([0, 192**-0.5])
    rows = copies.copies_rows({"held-out": training[:1] // 2, "drawn": altered[::-1]}, training)
    assert [name for name, _ in rows] == ["held-out", "nearest training", "drawn", "nearest training"]
    np.testing.assert_array_equal(rows[2][1], altered)
    np.testing.assert_array_equal(rows[3][1], training[[7, 3]])

    copies.copies(*emoji_run, tmp_path)
    lines = (tmp_path / "copies.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split("  ")[0] for line in lines[2:]] == ["held-out", "ddim, n = 2, from 999", "ddim, n = 2, from 300"]
    assert (tmp_path / "copies.png").exists()


def test_changes_that_features_are_tried_on(rng):
    """Catches a change without effect, a wrong order of severity, and a removal of labels that keeps them."""
    images, labels = rng.integers(0, 256, (60, 8, 8, 1), np.uint8), np.arange(60) % 10
    for family in ("noise", "blur", "pale"):
        changed = [change(images, labels, rng).astype(int) for change in features.FAMILIES[family].values()]
        differences = [np.abs(one - images).mean() for one in changed]
        assert differences == sorted(differences) and differences[0] > 1
    label_of = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    few_labels = [change(images, labels, rng) for change in features.FAMILIES["labels missing"].values()]
    assert [max(label_of[image.tobytes()] for image in one) for one in few_labels] == [7, 4, 1]
    few = [change(images, labels, rng) for change in features.FAMILIES["few distinct"].values()]
    assert all(len({image.tobytes() for image in one}) <= most for one, most in zip(few, (30, 6, 2), strict=True))
    assert [len(one) for one in (*few_labels, *few)] == 6 * [60]


def test_features_are_compared_with_the_classifier(experiment, tmp_path, monkeypatch):
    """Catches distances of unchanged pictures in the rows of changes, and distances in the wrong column."""
    monkeypatch.setattr(features, "SAMPLES", 20)
    monkeypatch.setattr(features, "CELLS", [("ddim", 2, None), ("ddim", 2, 500), ("ddim", 3, 300)])
    features.agree(experiment.config, tmp_path / "run", tmp_path)
    lines = (tmp_path / "agreement.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0].split("  ")[-2:] == ["FD (classifier)", "FD (random convolutions)"] and "correlation" in lines[-1]
    features.order(experiment.config, tmp_path / "run", tmp_path)
    text = (tmp_path / "features.txt").read_text(encoding="utf-8")
    assert text.startswith("898 pictures against 899 others")
    assert text.count("in order") == len(features.FAMILIES)


@pytest.fixture
def mixtures(experiment, tmp_path, monkeypatch):
    """Returns an experiment on a network with two mixtures, cells of two solvers and few images."""
    config = experiment.config.copy_and_resolve_references()
    config.sweep.components = ("1", "labels")
    run_lib.fid_stats(config)
    for name, value in {
        "COMPONENTS": ("1", "labels"),
        "TABLES": {"digits": mixture.Table(("ddim", "dpmpp_2m"), (2,), samples=12, searched=12)},
        "STARTS": (200, 300),
        "COPY_STARTS": (200,),
        "COPY_SAMPLES": 20,
        "MANY_STEPS": ("ddim", 4),
        "FLOW_STARTS": (300,),
        "FLOW_SAMPLES": 20,
        "FULL_STEPS": 4,
    }.items():
        monkeypatch.setattr(mixture, name, value)
    return runs.Experiment(config, tmp_path / "run", ("1", "labels"))


def test_mixtures_are_scored_on_the_same_noise(mixtures, tmp_path):
    """Catches a kind of start that is left out, a search on the noise of the scores, and an inverted gain."""
    mixture.make_table(mixtures, tmp_path)
    rows = read(tmp_path / "mixture.csv")
    kinds = ["pure noise", "leading", "1", "labels"]
    assert [row["start"] for row in rows] == [kind for _ in range(2) for kind in kinds for _ in range(3)]
    assert {row["t_start"] for row in rows if row["start"] == "leading"} == {"500"}
    assert {row["seed"] for row in rows} == {"1", "2", "3"}
    scores = {kind: np.mean([float(row["score"]) for row in rows[:12] if row["start"] == kind]) for kind in kinds}
    line = (tmp_path / "mixture.txt").read_text(encoding="utf-8").splitlines()[2].split()
    assert line[-1] == f"{scores['1'] / scores['labels']:.1f}x"
    assert (tmp_path / "mixture.png").exists()


def test_copies_are_measured_against_real_images(mixtures, tmp_path):
    """Catches a training image that is its own neighbour, and a set that is left out."""
    mixture.make_copying(mixtures, tmp_path)
    lines = (tmp_path / "copying.txt").read_text(encoding="utf-8").splitlines()[2:]
    assert [line.split("  ")[0] for line in lines] == [
        "real",
        "many steps",
        "Gaussian, from 200",
        "labels, from 200",
        "Gaussian, no network",
        "labels, no network",
    ]
    assert float(lines[0].split()[4]) > 1


def test_the_flow_of_one_gaussian_is_its_draw(mixtures, tmp_path):
    """Catches a wrong step or end of the flow. For one Gaussian, a sample is the exact solution of the flow."""
    one = mixture.mixture_of(mixtures, "1")
    noise = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    drawn = one.sample(noise, np.zeros(3, int), 0.4)
    np.testing.assert_allclose(mixture.flow_start(one, noise, None, 0.4), drawn, atol=0.02)
    mixture.make_flow(mixtures, tmp_path)
    assert len((tmp_path / "flow.txt").read_text(encoding="utf-8").splitlines()) == 2 + 4


def test_stratified_components_have_exact_shares(mixtures, tmp_path):
    """Catches one sequence on both sides of the comparison, and independent draws of other weights."""
    weights = np.array([0.1, 0.2, 0.7])
    drawn = mixture.independent_sequence(weights, seed=1, first=0, count=20_000)
    shares = np.bincount(drawn) / len(drawn)
    np.testing.assert_allclose(shares, weights, atol=0.02)  # 5 standard deviations
    assert np.abs(shares - weights).max() > 1e-4
    mixture.make_stratified(mixtures, tmp_path)
    lines = (tmp_path / "stratified.txt").read_text(encoding="utf-8").splitlines()[2:]
    assert [line.split()[1] for line in lines] == ["stratified", "independent"]
    assert lines[0].split()[2:] != lines[1].split()[2:]


def test_held_out_likelihood_prefers_the_components_that_made_the_data(config, tmp_path, monkeypatch):
    """Catches densities of the training images, a difference of the wrong sign, and a mixture at another alpha_bar.

    The data are three tight clusters, so three components gain log 3 nats less than the gain of their narrowness, and
    more components gain nothing on images that they were not fitted to.
    """
    rng = np.random.default_rng(0)
    centres = rng.integers(60, 200, (3, 8, 8, 1))

    def split(count):
        labels = np.arange(count) % 3
        images = centres[labels] + 4 * rng.standard_normal((count, 8, 8, 1))
        return datasets.Split(np.clip(images, 0, 255).round().astype(np.uint8), labels)

    monkeypatch.setattr(datasets, "load_labelled", lambda _: (split(300), split(60)))
    monkeypatch.setattr(mixture, "LIKELIHOOD_COMPONENTS", ("1", "labels", "12"))
    mixture.make_likelihood(config, tmp_path, tmp_path)
    labels, clusters = (
        [float(field) for field in line.split(")")[1].split()[::3]]
        for line in (tmp_path / "likelihood.txt").read_text(encoding="utf-8").splitlines()[2:]
    )
    assert labels[0] > 1 and all(np.diff(labels) < 0.5)
    assert clusters[0] < labels[0] + 0.5


def test_pictures_show_every_start_and_every_step(mixtures, tmp_path, monkeypatch):
    """Catches a start that is left out or drawn with the settings of another, and frames without the last step."""
    starts = (
        pictures.Start("pure noise", {}, {2: None}),
        pictures.Start("labels", {"components": "labels"}, {2: 300}),
    )
    for name, value in {"STEPS": (2,), "STARTS": starts, "COLUMNS": 3, "FRAME_COLUMNS": 3, "FRAME_STEPS": 2}.items():
        monkeypatch.setattr(pictures, name, value)
    drawn = []
    monkeypatch.setattr(pictures.plots, "save_comparison", lambda _, rows: drawn.extend(rows))
    pictures.draw_starts(mixtures, tmp_path)
    assert [label for label, _ in drawn] == ["n = 2, pure noise at 999", "n = 2, labels at 300"]
    assert not np.array_equal(drawn[0][1], drawn[1][1])
    with Image.open(tmp_path / "starts.gif") as animation:
        assert animation.n_frames == 2
        animation.seek(1)
        last = np.asarray(animation.convert("RGB"))
    grid = plots.image_grid(drawn[1][1], columns=3).repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_allclose(
        last[-len(grid) :, -grid.shape[1] :], np.broadcast_to(grid, (*grid.shape[:2], 3)), atol=8
    )
