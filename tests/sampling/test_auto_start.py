"""The search for a start: on made-up features whose best start is known, and on a real network."""

import json

import numpy as np
import pytest

import evaluation
import run_lib
from configs.validation import validate
from core import plots
from core.errors import UserError
from metrics import statistics
from sampling import auto_start


def features_at(best, rng, chunk=200):
    """Returns images whose mean and spread differ from the data's in proportion to the distance from the best start."""
    base = rng.standard_normal((2, chunk, 4))
    data = auto_start.Axes(np.concatenate(base).mean(axis=0), np.concatenate(base).std(axis=0))
    return lambda start, k: base[k] * (1 + abs(start - best) / 1000) + abs(start - best) / 100, data


def test_distance_sees_mean_and_spread(rng):
    """Catches a mean or standard deviation that is ignored. The limit for many images is computed independently."""
    images = rng.standard_normal((50, 2))
    images = np.tile((images - images.mean(axis=0)) / images.std(axis=0), (100_000, 1)) * [1.0, 5.0] + [2.3, 7.0]
    distance = auto_start._distance(images, auto_start.Axes(np.array([2.0, 7.0]), np.array([1.0, 3.0])))
    assert distance == pytest.approx(0.3**2 + 2.0**2, rel=1e-3)


def test_distance_of_few_images_heeds_the_axes_that_tell(rng):
    """Catches sampling error along one broad axis that outweighs a difference along many narrow axes."""
    broad = np.array([100.0, *[1.0] * 50])
    data = auto_start.Axes(np.zeros(51), broad)
    draws = rng.standard_normal((8, 16, 51)) * broad
    far = [auto_start._distance(images + np.where(broad == 1, 1.5, 0), data) for images in draws]
    near = [auto_start._distance(images, data) for images in draws]
    assert np.median(far) > 2 * np.median(near)


@pytest.mark.parametrize("best", [120, 225, 424, 610, 790])
def test_search_finds_the_nearest_start(rng, best):
    """Catches a second round around the wrong start, and the farthest start taken as the best."""
    found, curve, drawn = auto_start._search(*features_at(best, rng), 4, 999)
    tried = {start for start, _, _ in curve}
    assert abs(found - best) == min(abs(start - best) for start in tried)
    assert abs(found - best) <= 0.0125 * 999 + 1
    assert drawn <= auto_start.CHUNKS
    assert {images for _, images, _ in curve} == {200, 400}


def test_search_stays_where_a_grid_has_room(rng):
    """Catches a start with fewer times below it than the grid needs, or beyond the schedule."""
    for best in (0, 999):
        _, curve, _ = auto_start._search(*features_at(best, rng), 200, 860)
        starts = [start for start, _, _ in curve]
        assert min(starts) >= 200
        assert max(starts) <= 860


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
    real_generate = auto_start.generate
    real_walk = auto_start.walk

    def counted(*arguments, timesteps, num, first, **options):
        drawn.append((num - first) * len(timesteps))
        return real_generate(*arguments, timesteps=timesteps, num=num, first=first, **options)

    def counted_walk(denoiser, gaussian, noise, times, **options):
        drawn.append(len(noise) * len(times))
        return real_walk(denoiser, gaussian, noise, times, **options)

    monkeypatch.setattr(auto_start, "generate", counted)
    monkeypatch.setattr(auto_start, "walk", counted_walk)
    result = run_lib.evaluate(config, trained)
    choice = result["auto_start"]
    assert choice["network_calls"] == sum(drawn)
    assert sum(drawn) == pytest.approx(choice["share_of_evaluation"] * 600 * 4, rel=1e-3)
    assert max(point["images"] for point in choice["curve"]) == 16  # the minimum number, which exceeds SHARE
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
