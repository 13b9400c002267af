"""The automatic start: the rule on made-up features whose best start is known, and the choice on a real network."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import evaluation
import run_lib
from configs.validation import validate
from core import plots
from core.diffusion import Denoiser, NoiseSchedule
from core.errors import UserError
from metrics import statistics
from sampling import auto_start
from sampling.late_start import DataGaussian
from sampling.time_grid import time_grid


@pytest.fixture
def gaussian(rng):
    return DataGaussian.fit([rng.standard_normal((40, 2, 2, 1)) * [[[2.0]], [[0.5]]]])


@pytest.fixture
def gaussian_denoiser(gaussian):
    schedule = NoiseSchedule.linear()
    return Denoiser(lambda x, t: gaussian.eps(x, schedule.alpha_bar(t)), schedule)


class MadeUp:
    """A trial whose distances are given functions of the start."""

    def __init__(self, denoiser, to_reference, to_data=None):
        self.denoiser = denoiser
        self.asked = []
        self.of = {"reference": to_reference, "data": to_data}

    def to_reference(self, config, timesteps, count):
        return self.answer(config, "reference", timesteps, count)

    def to_data(self, config, timesteps, count):
        return self.answer(config, "data", timesteps, count)

    def answer(self, config, kind, timesteps, count):
        self.asked.append((config.sampling.sampler, kind, int(timesteps[0]), count))
        return self.of[kind](int(timesteps[0]))


def search(config, trial, sampler="ddim", within=(4, 999)):
    config.sampling.update(sampler=sampler, n_steps=5)
    return auto_start.search(config, trial, lambda start: time_grid(5, start), count=20, within=within)


def test_distance_by_hand(rng):
    """Catches a mean or standard deviation that is ignored, and a weight that depends on the number of images."""
    images = rng.standard_normal((50, 2))
    images = (images - images.mean(axis=0)) / images.std(axis=0) * [1.0, 5.0] + [2.3, 7.0]
    other = auto_start.Axes(np.array([2.0, 7.0]), np.array([1.0, 3.0]))
    assert auto_start.distance(images, other) == pytest.approx(0.3**2 + 2.0**2)
    assert auto_start.distance(np.tile(images, (7, 1)), other) == pytest.approx(0.3**2 + 2.0**2)


@pytest.mark.parametrize("best", [120, 225, 424, 610, 790])
def test_search_finds_the_nearest_start(config, gaussian_denoiser, best):
    """Catches a later round around the wrong start, and the farthest start taken as the best."""
    trial = MadeUp(gaussian_denoiser, lambda start: abs(start - best))
    found = search(config, trial)
    chosen = auto_start.best_of(found)
    assert chosen.distance == min(candidate.distance for candidate in found)
    assert abs(chosen.t_start - best) <= 0.026 * 999
    assert len(trial.asked) == len(set(trial.asked)) <= auto_start.CANDIDATES


def test_a_start_of_the_first_round_can_win(config, gaussian_denoiser):
    """Catches a start that cannot be chosen any more after the round in which it was tried."""
    trial = MadeUp(gaussian_denoiser, lambda start: 1 if start == 350 else 9)
    assert auto_start.best_of(search(config, trial)).t_start == 350


def test_stochastic_samplers_start_near_ddim(config, gaussian_denoiser):
    """Catches DDPM's images compared with reference images, and a start of DDIM that DDPM gets without a comparison."""
    trial = MadeUp(gaussian_denoiser, lambda start: abs(start - 300), to_data=lambda start: start)
    found = search(config, trial, sampler="ddpm")
    kinds = {(sampler, kind) for sampler, kind, _, _ in trial.asked}
    assert kinds == {("ddim", "reference"), ("ddpm", "data")}
    ddim_start = auto_start.best_of([c for c in found if c.compared_with == "reference"]).t_start
    tried = [c.t_start for c in found if c.compared_with == "data"]
    assert min(tried) < ddim_start <= max(tried) and len(tried) == len(auto_start.AROUND)
    assert auto_start.best_of(found).t_start == min(tried)


def test_search_stays_where_a_grid_has_room(config, gaussian_denoiser):
    """Catches a start with fewer times below it than the grid needs, or beyond the schedule."""
    for best in (0, 999):
        found = search(config, MadeUp(gaussian_denoiser, lambda start, best=best: abs(start - best)), within=(200, 860))
        starts = [candidate.t_start for candidate in found]
        assert min(starts) >= 200
        assert max(starts) <= 860


def trial_of(gaussian, denoiser, **changes):
    comparison = auto_start.Comparison(lambda x0: np.asarray(x0, np.float64).reshape(len(x0), -1), None)
    fields = {"denoiser": denoiser, "mixture": gaussian.mixture(), "comparison": comparison}
    return auto_start.Trial(**fields | {"image_shape": (2, 2, 1), "first": 512} | changes)


def test_same_noise_gives_the_same_images(config, gaussian, gaussian_denoiser):
    """Catches candidates from other noise than the reference: their distance would be of order 1 / images.

    For Gaussian data the late start is on the trajectory of the reference, and 100 steps make almost no error.
    """
    config.sampling.update(gls=True, sampler="ipndm", n_steps=100)
    trial = trial_of(gaussian, gaussian_denoiser)
    paired = trial.to_reference(config, time_grid(100, 400), count=16)
    config.seed += 1
    other = trial.features(config, time_grid(100, 400), slice(0, 16))
    config.seed -= 1
    reference = trial.reference(config, 16)
    unpaired = auto_start.distance(other, auto_start.Axes(reference.mean(axis=0), reference.std(axis=0)))
    assert paired < 1e-3 * unpaired


def test_one_reference_serves_all_cells(config, gaussian, gaussian_denoiser):
    """Catches reference images that are made again for another sampler, or differ when they are made in two parts."""
    config.sampling.update(gls=True, sampler="ddim", n_steps=2)
    trial = trial_of(gaussian, gaussian_denoiser)
    whole = trial.reference(config, 16)
    assert trial.network_calls == 16 * auto_start.REFERENCE_STEPS
    again = trial_of(gaussian, gaussian_denoiser, comparison=trial.comparison)
    config.sampling.update(sampler="heun", n_steps=7, spacing="logsnr")
    assert again.reference(config, 16) is not None and again.network_calls == 0
    parts = trial_of(gaussian, gaussian_denoiser)
    parts.reference(config, 8)
    np.testing.assert_allclose(parts.reference(config, 16), whole, atol=1e-5)
    assert parts.network_calls == 16 * auto_start.REFERENCE_STEPS
    config.sampling.clip_x0 = True
    assert np.abs(again.reference(config, 16) - whole).max() > 0.1


def test_what_cannot_be_compared_is_refused(config, gaussian, gaussian_denoiser):
    """Catches a start that is chosen from images that are not finite, or from features that tell nothing apart."""
    config.sampling.update(gls=True, sampler="ddim", n_steps=2)
    broken = trial_of(gaussian, Denoiser(lambda x, t: x * jnp.nan, gaussian_denoiser.schedule))
    with pytest.raises(UserError, match="hold NaN or infinity"):
        broken.reference(config, 8)
    blind = trial_of(
        gaussian, gaussian_denoiser, comparison=auto_start.Comparison(lambda x0: np.ones((len(x0), 3)), None)
    )
    with pytest.raises(UserError, match="are equal"):
        blind.reference(config, 8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from configs.ddpm import digits

    folder = tmp_path_factory.mktemp("auto_start")
    config = digits.get_config()
    config.data.cache_dir = str(folder / "decoded")
    config.training.update(batch_size=8, n_iters=4, snapshot_freq=4, snapshot_freq_for_preemption=4)
    config.training.snapshot_sampling = False
    config.model.update(ch_mult=(1,), attn_resolutions=())
    run_lib.train(config, folder / "run")
    return folder / "run"


def test_trial_costs_what_it_says_and_is_kept(config, trained, shipped_classifier, monkeypatch):
    """Catches more network calls than the limit, a wrong count, or another choice from the same seed."""
    config.eval.update(num_samples=600, batch_size=600, feature_batch_size=100)
    config.sampling.update(gls=True, t_start=-1, n_steps=4, spacing="auto")
    run_lib.fid_stats(config)
    drawn = []
    real_draw = auto_start.draw
    real_walk = auto_start.walk

    def counted(*arguments, timesteps, batch_size, **options):
        drawn.append(batch_size * len(timesteps))
        return real_draw(*arguments, timesteps=timesteps, batch_size=batch_size, **options)

    def counted_walk(denoiser, gaussian, noise, times, **options):
        drawn.append(len(noise) * len(times))
        return real_walk(denoiser, gaussian, noise, times, **options)

    monkeypatch.setattr(auto_start, "draw", counted)
    monkeypatch.setattr(auto_start, "walk", counted_walk)
    result = run_lib.evaluate(config, trained)
    choice = result["auto_start"]
    assert choice["network_calls"] == sum(drawn)
    assert sum(drawn) == pytest.approx(choice["share_of_evaluation"] * 600 * 4, rel=1e-3)
    assert {point["images"] for point in choice["curve"]} == {auto_start.IMAGES[0]}  # the minimum, which exceeds SHARE
    assert result["t_start"] == choice["t_start"] == choice["timesteps"][0]
    assert len(choice["timesteps"]) == 4
    [folder] = (trained / "eval").iterdir()
    assert "glsauto" in folder.name
    assert (folder / "auto_start.png").exists()
    monkeypatch.setattr(plots, "panels", None)  # a picture that cannot be drawn
    again = run_lib.evaluate(config, trained, "again")
    assert again["auto_start"] == choice
    [folder] = (trained / "again").iterdir()
    assert not (folder / "auto_start.png").exists()
    assert json.loads((folder / "result.json").read_text())["auto_start"] == choice


@pytest.mark.parametrize(("start", "spacing", "least"), [(-1, "linear", 0.13), (500, "auto", 0), (-1, "auto", 0.1)])
def test_trial_keeps_within_its_share(config, trained, shipped_classifier, start, spacing, least):
    """Catches network calls that are not counted, or a search far smaller than its share allows."""
    config.eval.num_samples = 4000
    config.sampling.update(gls=True, t_start=start, n_steps=4, spacing=spacing)
    run_lib.fid_stats(config)
    _, choice = evaluation.EvalRun(config, evaluation.load_context(config, trained, [config])).plan()
    assert least < choice.share <= 0.15


def test_chosen_grid_from_pure_noise_needs_the_gaussian_too(config, trained, shipped_classifier):
    """Catches a missing Gaussian that gives a traceback, or a result that does not name the Gaussian's file."""
    config.eval.update(num_samples=40, batch_size=40)
    config.sampling.update(gls=False, n_steps=4, spacing="auto")
    run_lib.fid_stats(config)
    result = run_lib.evaluate(config, trained, "from_noise")
    assert result["t_start"] == 999 and result["gaussian_sha256"]
    statistics.stats_path(config, statistics.GAUSSIAN).unlink()
    with pytest.raises(UserError, match="--mode=fid_stats"):
        run_lib.evaluate(config, trained, "without")


def test_sweep_with_auto_and_a_range(config, trained, shipped_classifier):
    """Catches an automatic start that replaces the best of the given starts, or that is replaced by it."""
    config.eval.update(num_samples=40, batch_size=40)
    config.sweep.update(samplers=("ddim",), n_steps=(2,), t_starts=("300:500:100", "auto"))
    run_lib.fid_stats(config)
    results = run_lib.sweep(config, trained, "swept")
    assert [(r["gls"], r["chooses_start"]) for r in results] == [(False, False), *[(True, False)] * 3, (True, True)]
    assert [r["t_start"] for r in results[1:4]] == [300, 400, 500]
    table = (trained / "swept" / "table.txt").read_text()
    assert table.count("auto") == 1
    assert len(table.splitlines()) == 2 + 3
    assert run_lib.sweep(config, trained, "swept") == results


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gls": True, "t_start": -1, "sampler": "ode"}, "ode is adaptive"),
        ({"spacing": "auto", "sampler": "ode"}, "ode is adaptive"),
        ({"spacing": "auto", "n_steps": 16}, "too many for spacing='auto': at most 15"),
        ({"spacing": "auto", "n_steps": 10, "gls": True, "t_start": 50}, "too late for 10 steps"),
        ({"gls": True, "t_start": -2}, "must be from"),
        ({"gls": False, "t_start": -1, "spacing": "later"}, "spacing='later'"),
    ],
)
def test_what_no_trial_can_choose_is_refused(config, settings, message):
    """Catches an error only after the search has begun."""
    config.sampling.update(settings)
    with pytest.raises(UserError, match=message):
        validate(config)


@pytest.mark.parametrize("start", ["300", "500:300:25", "300:500:0", "a:b:c", "+300:400:50", "automatic", 1.5])
def test_starts_of_a_sweep_that_mean_nothing(config, start):
    """Catches an invalid start that is accepted."""
    config.sweep.t_starts = (300, start)
    with pytest.raises(UserError, match="first:last:step"):
        validate(config)
