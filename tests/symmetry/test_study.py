"""Experiments with an exact mixture in the network's place, and the whole mode on a small network."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import evaluation
import run_lib
import sampling
from core.diffusion import NoiseSchedule
from core.errors import UserError
from metrics import statistics
from sampling import generate
from sampling.late_start import DataGaussian
from symmetry import figures, measurements, study
from symmetry.exact import Mixture

SHAPE = (4, 4, 1)
SCHEDULE = NoiseSchedule.linear()


@pytest.fixture(scope="module")
def subject():
    """Two images and their exact score; the class is the sign of the first pixel."""
    images = np.zeros((2, 16))
    images[:, :4] = [[0.9, 0.9, 0.9, 0.9], [-0.9, -0.9, -0.9, -0.9]]
    mixture = jax.tree.map(jnp.float32, Mixture.points(images))
    eps_fn = jax.tree_util.Partial(lambda mixture, x, t: mixture.eps(x, SCHEDULE.alpha_bar(t)), mixture)
    x0 = jnp.asarray(np.tile(images, (16, 1)).reshape(32, *SHAPE), jnp.float32)
    gaussian = DataGaussian.fit([np.asarray(x0)])

    def predict(pixels):
        return (pixels[:, 0, 0, 0] > 127).astype(int)

    return measurements.Subject(eps_fn, SCHEDULE, gaussian, x0, True, predict, jax.random.key(0), 20, 1, 50)


def test_class_survives_a_u_turn_only_below_the_critical_time(subject):
    """Noise of the wrong time, the late start's grid in place of t's, or the class compared with itself."""
    turned = measurements.u_turn(subject)
    assert (turned["stayed"][turned["t"] < 200] == 1).all()
    assert 0.2 < turned["stayed"][turned["t"] > 800].mean() < 0.8
    assert turned["chance"] == pytest.approx(0.5)


def test_noising_forgets_at_the_schedules_pace(subject):
    """Steps whose variances do not add up: the correlation with x_0 must be that of x_t drawn in one go."""
    found = measurements.correlation(subject)
    assert found["with_start"][0] == pytest.approx(1) and found["with_end"][-1] == pytest.approx(1)
    noise = jax.random.normal(jax.random.key(5), subject.x0.shape)
    for i in (3, 6, 9):
        x_t = np.asarray(SCHEDULE.diffuse(subject.x0, found["t"][i], noise)).reshape(32, -1)
        expected = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(x_t, subject.x0.reshape(32, -1), strict=True)])
        assert found["with_start"][i].mean() == pytest.approx(expected, abs=0.12)


def test_potential_is_that_of_the_exact_model(subject):
    """A line integral along another path, of another sign, or not from the mean: against the closed form."""
    made = measurements.generation(subject)
    level, mixture = 4, Mixture(*(np.asarray(leaf, float) for leaf in jax.tree.leaves(subject.eps_fn)))
    t, y = made["t_shown"][level], made["states"][level].reshape(2, -1, 16)  # the data's mean is zero
    norms = np.linalg.norm(y, axis=2, keepdims=True)
    y *= np.sqrt((norms**2).mean(axis=0)) / norms
    paths = np.cos(made["angle"])[:, None] * y[0][:, None] + np.sin(made["angle"])[:, None] * y[1][:, None]
    u = jax.vmap(jax.vmap(mixture.potential, (0, None)), (0, None))(jnp.asarray(paths), SCHEDULE.alpha_bar(t))
    u -= u[:, [np.abs(made["angle"]).argmin()]]
    np.testing.assert_allclose(made["potential"][level], u, atol=0.02 * np.abs(u).max())
    ends = made["states"][-1].reshape(-1, 16)
    np.testing.assert_allclose(np.abs(ends[:, :4]), 0.9, atol=0.02)  # the trajectories reach the data


def test_late_images_are_those_of_the_same_noise(subject):
    """A late start from other noise or another time, a grid that ends early, images paired with their own distance."""
    found = measurements.same_noise(subject, 16)
    assert found["t_start"].tolist() == [300, 400, 500, 600, 700]
    # Two images: each noise goes to the nearer, with a late start or without, whatever the number of steps.
    assert found["distance"].max() < 1e-3 * found["to_other_noise"]
    full = measurements._ddim(
        subject.eps_fn, SCHEDULE, jnp.ones((1, *SHAPE)), np.append(np.arange(1000)[::-1], -1), 1000
    )
    by_sampler = sampling.sample("ddim", subject.eps_fn, SCHEDULE, jnp.ones((1, *SHAPE)), np.arange(1000)[::-1])
    np.testing.assert_allclose(full, by_sampler, atol=1e-4)


def test_short_schedule_has_fewer_steps_below_a_late_start(subject):
    """More steps asked for than there are times below a start, which no grid has."""
    schedule = NoiseSchedule.linear(1e-3, 0.2, num_timesteps=60)
    found = measurements.same_noise(subject._replace(schedule=schedule), 4)
    assert found["t_start"].tolist() == [18, 24, 30, 36, 42]
    np.testing.assert_array_equal(found["distance"][:, 1], found["distance"][:, 2])  # 50 steps are all


def test_table_and_json_say_never_where_there_is_no_time():
    arrays = {name: np.array([3.0, 1.0]) for name in study.COMPARED} | {"t_gaussian": np.array([200.4, np.nan])}
    assert re.search(r"2 +1.00 +1 +never", study.comparison(arrays))
    assert study._listed(arrays["t_gaussian"]) == [200.4, None]


def test_chosen_starts_share_a_label_where_they_agree():
    """A start under another sampler's name or another n."""
    runs = [("ddim", 5, 410), ("ddim", 3, 325), ("ddpm", 3, 325), ("ddpm", 5, 410), ("heun", 5, 410)]
    runs = [{"sampler": name, "n_steps": n, "auto_start": {"t_start": t}} for name, n, t in runs]
    labelled = {" ".join(label.split()): starts for label, starts in figures.chosen_starts(runs).items()}
    assert labelled == {
        "t_start = auto for ddim, ddpm: 325 (n = 3), 410 (n = 5)": (325, 410),
        "t_start = auto for heun: 410 (n = 5)": (410,),
    }


@pytest.fixture
def workdir(config, tmp_path, monkeypatch):
    """Statistics of real digits, and in place of a trained network, whose compilation takes long, their Gaussian."""
    config.eval.enable_fid = False
    monkeypatch.setattr(run_lib.checkpoints, "require", lambda *_: 6)
    with pytest.raises(UserError, match="run --mode=fid_stats"):
        run_lib.analyze(config, tmp_path / "run")
    run_lib.fid_stats(config)
    gaussian = jax.tree.map(jnp.float32, DataGaussian.load(statistics.stats_path(config, statistics.GAUSSIAN)))
    eps_fn = jax.tree_util.Partial(lambda gaussian, x, t: gaussian.eps(x, SCHEDULE.alpha_bar(t)), gaussian)
    monkeypatch.setattr(run_lib.checkpoints, "load_ema", lambda *_: (6, None, None))
    monkeypatch.setattr(run_lib, "make_eps_fn", lambda *_: eps_fn)
    return tmp_path / "run"


def test_analyze_writes_every_picture_and_keeps_finished_numbers(config, workdir, monkeypatch):
    """A figure left out, numbers made anew that were there, or kept for another question; a page that needs files."""
    config.analysis.update(num_images=8, num_times=4, num_eigenvalues=1, n_steps=7)
    page = run_lib.analyze(config, workdir).read_text()
    drawn = [figure for figures in study.EXPERIMENTS.values() for figure in figures if figure.name != "u_turn"]
    assert page.count("<img") == page.count("data:image/png;base64,") == len(drawn)  # no classifier, so no u-turn
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page
    assert json.loads((workdir / "analysis/critical_times.json").read_text())["eigenvalues"][0] > 2

    made = []
    monkeypatch.setattr(measurements, "_noising", lambda *args: made.append(args))
    run_lib.analyze(config, workdir)
    assert not made
    config.seed += 1
    monkeypatch.setattr(study, "EXPERIMENTS", {measurements.correlation: ()})
    with pytest.raises(TypeError):  # made again, and what the patch returns is no array
        run_lib.analyze(config, workdir)
    assert len(made) == 1


def test_chosen_starts_are_those_of_an_evaluation_of_the_configs_size(config, workdir):
    """A trial as small as the analysis' own runs, of a start that is given, or one for all samplers."""
    config.eval.num_samples = 40
    config.analysis.score_samples = 5
    own = study._analysis_config(config)
    found = study._chosen_starts(config, own, evaluation.load_bench(own, workdir, [own]))
    assert [(run["sampler"], run["n_steps"], run["num_samples"]) for run in found] == [("ddpm", 2, 40), ("ddim", 2, 40)]
    for run in found:
        trial = run["auto_start"]
        assert trial["t_start"] in {point["t_start"] for point in trial["curve"]}
        assert trial["share_of_evaluation"] == pytest.approx(trial["network_calls"] / (40 * 2), abs=1e-4)


def test_scores_shown_are_of_this_step_and_these_settings(config, tmp_path):
    """Scores of another sampler, baseline, step, seed or number of samples in one figure."""
    facts = {"dataset": "digits", "checkpoint_step": 6}
    right = facts | {"seed": 42, "spacing": "linear", "clip_x0": False, "baseline": "", "sampler": "ddim"}
    right |= {"num_samples": 10, "score": 1.0}
    wrong = [{"sampler": "pndm"}, {"baseline": "afs"}, {"checkpoint_step": 5}, {"num_samples": 11}, {"score": None}]
    for i, change in enumerate([*wrong, {"seed": 1}, {}]):
        run_lib.files.write_json(tmp_path / f"{i}/result.json", right | change)
    assert study._scores_there(config, facts, tmp_path) == [right]


def test_full_length_takes_one_step_for_every_t(config):
    """A start whose steps are spread over another range, or one from pure noise that begins late."""
    config.analysis.update(score_samples=5, score_starts=(3, 200))
    runs = study._full_length_runs(study._analysis_config(config))
    sampled = [(run.sampling.sampler, run.sampling.gls, run.sampling.n_steps) for run in runs]
    assert sampled[:3] == [("ddpm", False, 1000), ("ddpm", True, 4), ("ddpm", True, 201)]
    assert [name for name, _, _ in sampled] == ["ddpm"] * 3 + ["ddim"] * 3
    for run in runs:
        grid = generate.grid_of(run, run_lib.make_schedule(run), run.sampling.gls)
        np.testing.assert_array_equal(grid, np.arange(run.sampling.n_steps)[::-1])


def test_settings_that_cannot_be_are_refused(config, tmp_path):
    """A traceback from inside an experiment, after minutes; large images have no more eigenvalues than directions."""
    for settings, message in (
        ({"analysis.num_eigenvalues": 13}, "at most 12"),
        ({"analysis.num_eigenvalues": 6, "data.image_size": 128, "sampling.rank": 5}, "at most 5"),
        ({"analysis.num_times": 1000}, "at most 999"),
    ):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(settings)
        with pytest.raises(UserError, match=message):
            run_lib.analyze(changed, tmp_path)
