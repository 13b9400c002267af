"""Measurements on an exact mixture that replaces a network, and --mode=analyze on digits."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import evaluation
import run_lib
import sampling
from core import plots
from core.diffusion import Denoiser, NoiseSchedule
from core.errors import UserError
from metrics import statistics
from models import make_schedule
from sampling import generate
from sampling.late_start import DataGaussian
from symmetry import figures, measurements, study
from symmetry.exact import Mixture

SHAPE = (4, 4, 1)
SCHEDULE = NoiseSchedule.linear()


@pytest.fixture(scope="module")
def subject():
    """Returns a Subject of two images with their exact score. The class is the sign of the first pixel."""
    images = np.zeros((2, 16))
    images[:, :4] = [[0.9, 0.9, 0.9, 0.9], [-0.9, -0.9, -0.9, -0.9]]
    mixture = jax.tree.map(jnp.float32, Mixture.points(images))
    x0 = jnp.asarray(np.tile(images, (16, 1)).reshape(32, *SHAPE), jnp.float32)

    def predict(pixels):
        return np.asarray(pixels[:, 0, 0, 0] > 127).astype(int)

    return measurements.Subject(
        denoiser=Denoiser(jax.tree_util.Partial(eps_of_mixture, mixture), SCHEDULE),
        gaussian=DataGaussian.fit([np.asarray(x0)]),
        mixtures={"2": two_points(images)},
        x0=x0,
        centered=True,
        predict=predict,
        rng=jax.random.key(0),
        num_times=20,
        num_eigenvalues=1,
        n_steps=50,
    )


def two_points(images):
    """The data as a mixture of two components without variance."""
    directions = DataGaussian.fit([images.reshape(2, *SHAPE)])
    return dataclasses.replace(
        directions.mixture(),
        weights=np.array([0.5, 0.5]),
        means=(images - directions.mean) @ directions.eigenvectors,
        rotations=np.zeros((2, 0, 0)),
        variances=np.zeros((2, 16)),
        residual_variances=np.zeros(2),
    )


def eps_of_mixture(mixture, x, t):
    return mixture.eps(x, SCHEDULE.alpha_bar(t))


def test_class_survives_a_u_turn_only_below_the_critical_time(subject):
    """Catches noise of a wrong time, a time grid from a wrong start, or a class compared with itself."""
    turned = measurements.u_turn(subject)
    assert (turned["stayed"][turned["t"] < 200] == 1).all()
    assert 0.2 < turned["stayed"][turned["t"] > 800].mean() < 0.8
    assert turned["chance"] == pytest.approx(0.5)


def test_mixture_of_the_data_explains_all_and_reveals_what_theory_says(subject):
    """Would catch the entropy in other units or of other weights, and a mixture at another alpha_bar.

    The two images are +m and -m. The information on the sign is that of a binary input in Gaussian noise, with the
    signal-to-noise ratio of |m|^2 ab / (1 - ab).
    """
    measured = measurements.splits(subject)
    assert measured["components"].tolist() == ["1", "2"]
    assert (measured["revealed"][0] == 0).all()
    assert (measured["unexplained"][1] < 1e-5).all() and measured["unexplained"][0].max() > 0.05
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(60)
    ab = np.asarray(SCHEDULE.alpha_bar(measured["t"]), np.float64)
    snr = 4 * 0.9**2 * ab / (1 - ab)
    exponents = -2 * snr[:, None] - 2 * np.sqrt(snr)[:, None] * nodes
    expected = 1 - (np.logaddexp(0, exponents) / np.log(2)) @ node_weights / node_weights.sum()
    np.testing.assert_allclose(measured["revealed"][1], expected, atol=0.12)  # 32 images
    assert np.abs(measured["revealed"][1] - expected).mean() < 0.05


def test_split_is_visible_when_the_signal_of_the_means_equals_the_noise(subject):
    """Would catch the covariance of means without weights, or the components' own variance in its place."""
    measured = measurements.splits(subject)
    ab = float(SCHEDULE.alpha_bar(measured["t_between"][1]))
    assert ab * 4 * 0.9**2 == pytest.approx(1, rel=1e-4)
    assert np.isnan(measured["t_between"][0]) and np.isnan(measured["t_within_2"]).all()


def test_best_starts_are_those_of_their_own_components():
    """Would catch stars of another mixture, of pure noise, or of the worst score."""
    run = {"sampler": "ddim", "n_steps": 3, "gls": True}
    runs = [
        run | {"score": 1.0, "t_start": 999, "gls": False},
        run | {"score": 3.0, "t_start": 500},
        run | {"score": 2.0, "t_start": 400},
        run | {"score": 1.5, "t_start": 300, "components": "10"},
        run | {"score": 9.0, "t_start": 600, "n_steps": 5},
    ]
    assert figures.best_starts(runs, "1") == [400, 600]
    assert figures.best_starts(runs, "10") == [300]


def test_noising_forgets_at_the_schedules_pace(subject):
    """Catches wrong variances of the steps. The correlation with x_0 must equal that of x_t drawn directly."""
    measured = measurements.correlation(subject)
    assert measured["with_start"][0] == pytest.approx(1) and measured["with_end"][-1] == pytest.approx(1)
    noise = jax.random.normal(jax.random.key(5), subject.x0.shape)
    for i in (3, 6, 9):
        x_t = np.asarray(SCHEDULE.diffuse(subject.x0, measured["t"][i], noise)).reshape(32, -1)
        expected = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(x_t, subject.x0.reshape(32, -1), strict=True)])
        assert measured["with_start"][i].mean() == pytest.approx(expected, abs=0.12)


def test_potential_is_that_of_the_exact_model(subject):
    """Catches a line integral along another path, with the wrong sign, or around another centre than the mean."""
    measured = measurements.generation(subject)
    level = 4
    mixture = Mixture(*(np.asarray(leaf, float) for leaf in jax.tree.leaves(subject.denoiser.network)))
    t = measured["t_shown"][level]
    angle = measured["angle"]
    y = measured["states"][level].reshape(2, -1, 16)  # the mean of the data is zero
    norms = np.linalg.norm(y, axis=2, keepdims=True)
    y *= np.sqrt((norms**2).mean(axis=0)) / norms
    paths = np.cos(angle)[:, None] * y[0][:, None] + np.sin(angle)[:, None] * y[1][:, None]
    u = jax.vmap(jax.vmap(mixture.potential, (0, None)), (0, None))(jnp.asarray(paths), SCHEDULE.alpha_bar(t))
    u -= u[:, [np.abs(angle).argmin()]]
    np.testing.assert_allclose(measured["potential"][level], u, atol=0.02 * np.abs(u).max())
    ends = measured["states"][-1].reshape(-1, 16)
    np.testing.assert_allclose(np.abs(ends[:, :4]), 0.9, atol=0.02)  # the trajectories reach the data


def test_late_images_are_those_of_the_same_noise(subject):
    """Catches a late start from other noise or at another time, and a distance between the wrong images."""
    measured = measurements.same_noise(subject, 16)
    assert measured["t_start"].tolist() == [300, 400, 500, 600, 700]
    # There are two images. Each noise leads to the nearer one, with or without a late start, in any number of steps.
    assert measured["distance"].max() < 1e-3 * measured["to_other_noise"]


def test_trajectory_is_that_of_the_sampler(subject):
    """Catches a trajectory that lacks its first or last state, or ends early."""
    x = jnp.ones((1, *SHAPE))
    timesteps = np.arange(1000)[::-1]
    states = measurements._ddim_states(subject.denoiser, x, timesteps)
    assert len(states) == 1001
    np.testing.assert_array_equal(states[0], x)
    np.testing.assert_allclose(states[-1], sampling.sample("ddim", subject.denoiser, x, timesteps), atol=1e-4)


def test_short_schedule_has_fewer_steps_below_a_late_start(subject):
    """Catches a grid with more steps than there are times below a start."""
    denoiser = dataclasses.replace(subject.denoiser, schedule=NoiseSchedule.linear(1e-3, 0.2, num_timesteps=60))
    measured = measurements.same_noise(subject._replace(denoiser=denoiser), 4)
    assert measured["t_start"].tolist() == [18, 24, 30, 36, 42]
    np.testing.assert_array_equal(measured["distance"][:, 1], measured["distance"][:, 2])  # 50 steps use all times


def test_table_and_json_have_no_nan():
    """Catches NaN printed in the table, or written to a JSON file, for a direction without a critical time."""
    arrays = {name: np.array([3.0, 1.0]) for name in study.COMPARED} | {"t_gaussian": np.array([200.4, np.nan])}
    assert re.search(r"2 +1.00 +1 +never", study.critical_times_table(arrays))
    assert study._listed(arrays["t_gaussian"]) == [200.4, None]


def test_equal_automatic_starts_share_a_label():
    """Catches a start that is listed under a wrong sampler or n."""
    runs = [("ddim", 5, 410), ("ddim", 3, 325), ("ddpm", 3, 325), ("ddpm", 5, 410), ("heun", 5, 410)]
    runs = [{"sampler": name, "n_steps": n, "auto_start": {"t_start": t}} for name, n, t in runs]
    labelled = {" ".join(label.split()): starts for label, starts in figures.automatic_starts(runs).items()}
    assert labelled == {
        "t_start = auto for ddim, ddpm: 325 (n = 3), 410 (n = 5)": (325, 410),
        "t_start = auto for heun: 410 (n = 5)": (410,),
    }


@pytest.fixture
def workdir(config, tmp_path, monkeypatch):
    """Returns a workdir with statistics of digits. Their Gaussian replaces a trained network, which compiles slowly."""
    config.eval.enable_fid = False
    config.sweep.components = ("1", "4")
    monkeypatch.setattr(run_lib.checkpoints, "require", lambda *_: 6)
    with pytest.raises(UserError, match="run --mode=fid_stats"):
        run_lib.analyze(config, tmp_path / "run")
    run_lib.fid_stats(config)
    gaussian = jax.tree.map(jnp.float32, DataGaussian.load(statistics.stats_path(config, statistics.GAUSSIAN)))
    denoiser = Denoiser(jax.tree_util.Partial(eps_of_gaussian, gaussian), SCHEDULE)
    monkeypatch.setattr(run_lib.checkpoints, "load_ema", lambda *_: (6, None, nnx.State({})))
    monkeypatch.setattr(evaluation, "make_denoiser", lambda *_: denoiser)
    return tmp_path / "run"


def eps_of_gaussian(gaussian, x, t):
    return gaussian.eps(x, SCHEDULE.alpha_bar(t))


def test_analyze_writes_every_figure_and_reuses_stored_numbers(config, workdir, monkeypatch, capsys):
    """Catches a missing figure, a page that needs other files, and stored numbers recomputed or wrongly reused.

    Also catches an analysis that ends because a figure cannot be drawn.
    """
    config.analysis.update(num_images=8, num_times=4, num_eigenvalues=1, n_steps=7)
    page = run_lib.analyze(config, workdir).read_text()
    drawn = [figure for figures in study.EXPERIMENTS.values() for figure in figures if figure.name != "u_turn"]
    assert page.count("<img") == page.count("data:image/png;base64,") == len(drawn)  # no classifier, so no u-turn
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page
    assert json.loads((workdir / "analysis/critical_times.json").read_text())["eigenvalues"][0] > 2

    made = []
    monkeypatch.setattr(measurements, "_noising", lambda *args, **options: made.append(args))
    with monkeypatch.context() as patch:
        patch.setattr(plots, "panels", None)  # so every picture fails, and the old files must not be shown
        page = run_lib.analyze(config, workdir).read_text()
    assert not made
    assert page.count("<p>This picture could not be drawn.</p>") == len(drawn) and "<img" not in page
    assert capsys.readouterr().err.count("main.py: warning: ") == len(drawn)
    config.seed += 1
    monkeypatch.setattr(study, "EXPERIMENTS", {measurements.correlation: ()})
    with pytest.raises(TypeError):  # measured again: the patched function returns None
        run_lib.analyze(config, workdir)
    assert len(made) == 1


def test_automatic_starts_are_those_of_an_evaluation_of_the_configs_size(config, workdir):
    """Catches a search with the sample number of the analysis, a given start, and DDPM's start without scores."""
    config.eval.num_samples = 40
    config.analysis.score_samples = 5
    run_config = study._run_config(config)
    automatic = study._automatic_runs(config, run_config)
    context = evaluation.load_context(run_config, workdir, automatic)
    runs = study._automatic_starts(automatic, context)
    assert [(run["sampler"], run["n_steps"], run["num_samples"]) for run in runs] == [("ddim", 2, 40)]
    for run in runs:
        auto_start = run["auto_start"]
        assert auto_start["t_start"] in {point["t_start"] for point in auto_start["curve"]}
        assert auto_start["share_of_evaluation"] == pytest.approx(auto_start["network_calls"] / (40 * 2), abs=1e-4)
    config.eval.enable_fid = True
    assert [run.sampling.sampler for run in study._automatic_runs(config, study._run_config(config))] == [
        "ddpm",
        "ddim",
    ]


def test_scores_shown_are_of_this_step_and_these_settings(config, tmp_path):
    """Catches scores of another sampler, baseline, step, seed or number of samples in one figure."""
    network = {"dataset": "digits", "checkpoint_step": 6}
    expected = network | {"seed": 42, "spacing": "linear", "clip_x0": False, "baseline": "", "sampler": "ddim"}
    expected |= {"num_samples": 10, "score": 1.0}
    others = [{"sampler": "pndm"}, {"baseline": "afs"}, {"checkpoint_step": 5}, {"num_samples": 11}, {"score": None}]
    for i, change in enumerate([*others, {"seed": 1}, {}]):
        run_lib.files.write_json(tmp_path / f"{i}/result.json", expected | change)
    assert study._stored_scores(config, network, tmp_path) == [expected]


def test_full_length_takes_one_step_for_every_t(config):
    """Catches steps spread over another range, or a run from pure noise that begins late."""
    config.analysis.update(score_samples=5, score_starts=(3, 200))
    runs = study._full_length_runs(study._run_config(config))
    sampled = [(run.sampling.sampler, run.sampling.gls, run.sampling.n_steps) for run in runs]
    assert sampled[:3] == [("ddpm", False, 1000), ("ddpm", True, 4), ("ddpm", True, 201)]
    assert [name for name, _, _ in sampled] == ["ddpm"] * 3 + ["ddim"] * 3
    for run in runs:
        grid = generate.grid_of(run, make_schedule(run), run.sampling.gls)
        np.testing.assert_array_equal(grid, np.arange(run.sampling.n_steps)[::-1])


def test_settings_that_cannot_be_are_refused(config, tmp_path):
    """Catches an error inside an experiment after minutes, also for more eigenvalues than sampling.rank."""
    for settings, message in (
        ({"analysis.num_eigenvalues": 13}, "at most 12"),
        ({"analysis.num_eigenvalues": 6, "data.image_size": 128, "sampling.rank": 5}, "at most 5"),
        ({"analysis.num_times": 1000}, "at most 999"),
    ):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(settings)
        with pytest.raises(UserError, match=message):
            run_lib.analyze(changed, tmp_path)
