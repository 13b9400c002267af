"""Runs every mode once on digits with a small network, and checks the results."""

import functools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import datasets
import evaluation
import losses
import run_lib
import sampling
from configs import imported, stored
from core import files, plots
from core.diffusion import Denoiser, NoiseSchedule
from core.errors import UserError
from metrics import statistics
from metrics.features import load_features
from models import make_denoiser
from sampling import late_start
from sampling.generate import generate, prior
from sampling.late_start import DataGaussian
from sampling.time_grid import time_grid
from training import checkpoints


def metrics_of(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def final_state(config, workdir):
    _, state = losses.create_state(config)
    return checkpoints.resume(config, workdir, state)


@pytest.fixture
def trained(config, tmp_path, train_once):
    return train_once(config, tmp_path / "run")


def test_training_lowers_the_loss_and_leaves_what_it_should(config, tmp_path):
    """Catches a step that does not learn, and metrics, samples or a config that are not written."""
    config.training.update(n_iters=60, batch_size=32, log_freq=20, snapshot_freq=60)
    run_lib.train(config, tmp_path / "run")
    losses_logged = [line["loss"] for line in metrics_of(tmp_path / "run")]
    assert losses_logged[-1] < 0.7 * losses_logged[0]
    assert (tmp_path / "run/samples/step_0000060.png").exists()
    assert json.loads((tmp_path / "run/config.json").read_text())["training"]["n_iters"] == 60


def test_training_anew_draws_its_own_samples(config, trained):
    """Catches pictures of an earlier network that are kept for a new one."""
    picture = trained / "samples/step_0000006.png"
    own = picture.read_bytes()
    (trained / "checkpoints").rename(trained / "moved")
    picture.write_bytes(b"an old network's")
    run_lib.train(config, trained)
    assert picture.read_bytes() == own


def test_resumed_training_ends_where_an_uninterrupted_one_does(config, tmp_path):
    """Catches random keys, data, schedule or EMA that are reset or change when training resumes."""
    config.training.n_iters = 3
    config.optim.schedule = "constant"
    straight = tmp_path / "straight"
    resumed = tmp_path / "resumed"
    run_lib.train(config, resumed)
    config.training.n_iters = 6
    run_lib.train(config, resumed)
    run_lib.train(config, straight)
    assert metrics_of(resumed) == metrics_of(straight)
    jax.tree.map(np.testing.assert_array_equal, final_state(config, resumed), final_state(config, straight))


def test_the_library_loads_the_averaged_weights_of_a_step(config, trained):
    """Catches raw weights instead of averaged ones, or a wrong step."""
    graphdef, state = losses.create_state(config)
    for step, asked in ((6, {}), (3, {"step": 3})):
        ema = checkpoints.load(config, trained, step=step, state=state).ema
        expected = make_denoiser(config, graphdef, ema)
        found = run_lib.load_denoiser(trained, **asked)
        for leaf, expected_leaf in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(leaf, expected_leaf)
    with pytest.raises(UserError, match="no checkpoint of step 4"):
        run_lib.load_denoiser(str(trained), step=4)


def test_another_network_in_the_workdir_is_refused_by_field(config, trained):
    """Catches a workdir whose network is replaced, and a message about shapes that does not name the field."""
    before = (trained / "config.json").read_bytes()
    config.model.nf = 64
    for start in (run_lib.train, run_lib.evaluate):
        with pytest.raises(UserError, match="model.nf is 64, there 32"):
            start(config, trained)
    assert (trained / "config.json").read_bytes() == before


def test_eval_says_what_is_missing(config, tmp_path, trained):
    """Catches a traceback for a missing checkpoint or missing statistics."""
    with pytest.raises(UserError, match="no checkpoint in"):
        run_lib.evaluate(config, tmp_path / "elsewhere")
    with pytest.raises(UserError, match="run --mode=fid_stats"):
        run_lib.evaluate(config, trained)
    config.eval.checkpoint = 5
    with pytest.raises(UserError, match="no checkpoint of step 5.*there are 3, 6"):
        run_lib.evaluate(config, trained)


def test_statistics_are_those_of_every_training_image(config, shipped_classifier):
    """Catches a last batch that is lost, padding that is counted, and images that are flipped or scaled wrongly."""
    config.eval.batch_size = 500
    run_lib.fid_stats(config)
    images = datasets.load(config, "train").images
    flat = images.reshape(len(images), -1) / 127.5 - 1
    gaussian = DataGaussian.load(statistics.stats_path(config, "gaussian"))
    np.testing.assert_allclose(gaussian.mean, flat.mean(axis=0), atol=1e-6)
    covariance = (gaussian.eigenvectors * gaussian.eigenvalues) @ gaussian.eigenvectors.T
    np.testing.assert_allclose(covariance, np.cov(flat, rowvar=False), atol=1e-6)

    features = load_features(config)
    expected = np.asarray(features.extract(images), np.float64)
    reference = statistics.load_reference(config, features)
    np.testing.assert_allclose(reference.mean, expected.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(reference.cov, np.cov(expected, rowvar=False), atol=1e-4)


def test_statistics_of_large_images_keep_the_leading_directions(config, monkeypatch):
    """Catches the same for images that are too large for a covariance matrix."""
    monkeypatch.setattr(late_start, "EXACT_UP_TO", 63)
    config.eval.enable_fid = False
    config.sampling.rank = 5
    run_lib.fid_stats(config)
    flat = datasets.load(config, "train").images.reshape(-1, 64) / 127.5 - 1
    gaussian = DataGaussian.load(statistics.stats_path(config, "gaussian"))
    expected = np.linalg.eigvalsh(np.cov(flat, rowvar=False))
    np.testing.assert_allclose(gaussian.mean, flat.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(gaussian.eigenvalues, expected[:-6:-1], rtol=1e-4)
    np.testing.assert_allclose(gaussian.residual_variance, expected[:-5].mean(), rtol=1e-4)


def test_sweep_keeps_what_is_finished_and_eval_agrees(config, trained, shipped_classifier, monkeypatch):
    """Catches a finished run drawn again, a reused run with other settings, and an eval that differs from the sweep."""
    run_lib.fid_stats(config)
    results = run_lib.sweep(config, trained)
    assert [(r["sampler"], r["nfe"], r["t_start"]) for r in results] == [
        (sampler, nfe, start) for sampler, nfe in (("ddim", 2), ("pndm", 8)) for start in (999, 300, 500)
    ]
    assert all(np.isfinite(r["score"]) and r["num_samples"] == 10 and r["checkpoint_step"] == 6 for r in results)
    folder = trained / "eval/pndm_n2_gls500_step6_num10_seed42"
    assert json.loads((folder / "result.json").read_text()) == results[-1]
    assert np.load(folder / "samples.npz")["images"].shape == (10, 8, 8, 1)
    assert "gain" in (trained / "eval/table.txt").read_text()

    config.sampling.update(sampler="pndm", gls=True, t_start=500)
    again = run_lib.evaluate(config, trained, "again")
    assert again["score"] == pytest.approx(results[-1]["score"], rel=1e-6)

    drawn = []
    real_run = evaluation.EvalRun.draw_and_score
    monkeypatch.setattr(evaluation.EvalRun, "draw_and_score", lambda *args: drawn.append(args) or real_run(*args))
    assert run_lib.sweep(config, trained) == results and not drawn
    (folder / "result.json").unlink()
    run_lib.sweep(config, trained)
    assert len(drawn) == 1
    config.seed += 1
    run_lib.sweep(config, trained)
    assert len(drawn) == 1 + len(results)


def test_sweep_of_mixtures(config, trained, shipped_classifier):
    """Catches one distribution used for all late starts, runs that replace each other, and missing baselines."""
    config.sweep.update(samplers=("ddim",), components=("1", "labels", "5"), baselines=("leading",), t_starts=(300,))
    run_lib.fid_stats(config)
    results = run_lib.sweep(config, trained)
    kinds = [(r["t_start"], r["baseline"], r.get("components")) for r in results]
    assert kinds == [(999, "", None), (500, "leading", None), (300, "", None), (300, "", "labels"), (300, "", "5")]
    assert len({r["score"] for r in results}) == 5
    assert {"ddim_n2_gls300_labels_step6_num10_seed42", "ddim_n2_gls300_5-clusters_step6_num10_seed42"} <= {
        path.name for path in (trained / "eval").iterdir()
    }
    assert "300 labels" in (trained / "eval/table.txt").read_text()
    assert run_lib.sweep(config, trained) == results


def test_given_classes_are_drawn(config, trained, shipped_classifier):
    """Catches components that do not belong to the given classes. Late starts near clean data show the class."""
    config.sampling.update(gls=True, t_start=10, components="labels", classes=(3, 7))
    config.eval.num_samples = 40
    run_lib.fid_stats(config)
    counts = np.array(run_lib.evaluate(config, trained)["label_histogram"])
    assert counts[[3, 7]].sum() > 0.8 and counts[[3, 7]].min() > 0.3


def test_killed_eval_goes_on_to_the_same_result(config, tmp_path, trained, shipped_classifier):
    """Catches images that a resumed run loses, repeats or changes, and a saved state with other settings."""
    config.eval.update(num_samples=40, feature_batch_size=5, enable_sampling=True)
    run_lib.fid_stats(config)
    (tmp_path / "config.json").write_text(config.to_json())
    code = f"""
import json, os, signal
from pathlib import Path
from configs.ddpm import digits
import evaluation, run_lib
config = digits.get_config()
config.update(json.loads(Path({str(tmp_path / "config.json")!r}).read_text()))
observe, evaluation.SAVE_SECONDS = evaluation.observe, -1
def observe_and_die(tally, *rest, **options):
    if tally.count == 15:
        os.kill(os.getpid(), signal.SIGKILL)
    observe(tally, *rest, **options)
evaluation.observe = observe_and_die
run_lib.evaluate(config, Path({str(trained)!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=files.REPOSITORY, capture_output=True)
    assert done.returncode == -9
    [folder] = (trained / "eval").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["part.npz", "part_images.npy"]

    drawn = []
    real_generate = evaluation.generate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            evaluation, "generate", lambda *args, **opts: drawn.append(opts["first"]) or real_generate(*args, **opts)
        )
        resumed = run_lib.evaluate(config, trained)
        straight = run_lib.evaluate(config, trained, "straight")
    assert drawn == [15, 0]
    timing = {"wall_seconds", "images_per_second"}
    for name in resumed.keys() - timing:
        close = pytest.approx(straight[name], rel=1e-9) if isinstance(straight[name], float) else straight[name]
        assert resumed[name] == close, name
    samples = [np.load(trained / name / folder.name / "samples.npz")["images"] for name in ("eval", "straight")]
    np.testing.assert_array_equal(*samples)
    assert sorted(path.name for path in folder.iterdir()) == ["result.json", "samples.npz", "samples.png"]


def test_score_of_images_on_disk_is_that_of_eval(config, tmp_path, trained, shipped_classifier):
    """Catches images that are lost, scored twice, or changed by writing and reading."""
    config.eval.update(num_samples=70, feature_batch_size=32, enable_sampling=True, batch_size=70)
    run_lib.fid_stats(config)
    drawn = run_lib.evaluate(config, trained)
    source = next((trained / "eval").iterdir()) / "samples.npz"
    pngs = run_lib.sample(config, trained, 70) / "images"
    for path in (source, pngs):
        found = run_lib.score(config, tmp_path / "score", path)
        for name in ("score", "score_error", "kid", "precision", "coverage", "label_entropy", "num_samples"):
            assert found[name] == pytest.approx(drawn[name], rel=1e-6), name
    assert len(list((tmp_path / "score").glob("*/result.json"))) == 2

    itself = run_lib.score(config, tmp_path / "score", source, reference=pngs)
    assert itself["score"] == pytest.approx(0, abs=1e-6) and itself["label_distance"] == 0
    assert (itself["precision"], itself["recall"]) == (1, 1) and "70 images" in itself["reference"]


def test_images_are_checked_before_features_are_loaded(config, tmp_path, monkeypatch):
    """Catches an unusable picture that is found only after minutes of work, or in only one of the two folders."""
    monkeypatch.setattr(run_lib, "load_features", lambda *_: pytest.fail("features are loaded"))
    for name, count in (("good", 1), ("moves", 2)):
        frames = [Image.new("L", (8, 8), level) for level in range(count)]
        (tmp_path / name).mkdir()
        for i in range(2):
            frames[0].save(tmp_path / name / f"{i}.gif", save_all=True, append_images=frames[1:])
    good, moves = tmp_path / "good", tmp_path / "moves"
    for source, reference in ((good, moves), (moves, good)):
        with pytest.raises(UserError, match=r"moves: 2 of 2 .*holds 2 frames.*\(2 of this kind\)"):
            run_lib.score(config, tmp_path / "score", source, reference)


def test_sample_writes_the_images_that_generate_draws(config, trained):
    """Catches PNGs in another order, film strips of other images, and required statistics that are not used."""
    config.sampling.n_steps = 3
    folder = run_lib.sample(config, trained, 5, file_format="npz", trajectory=True)
    images = np.load(folder / "samples.npz")["images"]
    film = np.load(folder / "trajectory.npz")
    assert film["t"].tolist() == [999, 499, 0] and images.shape == (5, 8, 8, 1)
    np.testing.assert_array_equal(datasets.to_uint8(film["predicted_x0"][-1], True), images)
    assert run_lib.sample(config, trained, 5) == folder
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "images/000003.png")), images[3, ..., 0])
    assert config.eval.enable_fid  # the caller's config is left as it was


def test_results_are_on_disk_when_a_picture_fails(config, tmp_path, shipped_classifier, monkeypatch, capsys):
    """Catches a picture that ends a mode, and one that is drawn before the results that it shows are saved."""
    saved_before = {
        "samples.png": "result.json",
        "comparison.png": "table.txt",
        "starts.png": "sweep.json",
        "trajectory.png": "trajectory.npz",
        "grid.png": "samples.npz",
    }
    failed = []

    def fail(path, *contents, **options):
        failed.append(path.name)
        result = saved_before.get(path.name) or path.with_suffix(".npz").name
        assert path.name == "step_0000006.png" or (path.parent / result).exists(), path
        raise RuntimeError("no pictures here")

    for name in ("save_grid", "save_comparison", "panels"):
        monkeypatch.setattr(plots, name, fail)
    workdir = tmp_path / "run"
    run_lib.train(config, workdir)
    assert checkpoints.saved_steps(workdir) == [3, 6]
    run_lib.fid_stats(config)
    results = run_lib.sweep(config, workdir)
    run_lib.sample(config, workdir, 5, "npz", trajectory=True)
    compared = run_lib.compare(config, workdir, 4).with_suffix(".npz")
    assert set(failed) == {*saved_before, "step_0000006.png", compared.with_suffix(".png").name}
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("main.py: warning: ")]
    assert len(warnings) == len(failed) == len(results) + 6
    assert all("is not drawn (RuntimeError: no pictures here)" in line for line in warnings)
    with np.load(compared) as rows:
        assert len(rows) >= 4 and all(images.shape == (4, 8, 8, 1) for images in rows.values())


def test_more_directions_than_images_have_are_refused():
    """Catches a rank that is reduced without an error, or refused although the covariance is small."""
    images = np.zeros((20, 64, 64, 3), np.uint8)
    with pytest.raises(UserError, match="sampling.rank=20 is too many for 20 images of dimension 12288: at most 19"):
        statistics.require_enough(images, 20)
    statistics.require_enough(images, 19)
    statistics.require_enough(images[:, :8, :8], 256)


def test_comparison_needs_the_gaussian_alone(config, trained):
    """Catches a start with fewer times than a run has steps, and features that are computed but not used."""
    config.eval.enable_fid = False
    run_lib.fid_stats(config)
    path = run_lib.compare(config, trained, 4)
    assert path.exists()
    config.sampling.spacing = "quadratic"
    assert run_lib.compare(config, trained, 4) != path  # other images, which must not replace the first
    assert not statistics.stats_path(config, "classifier").exists()
    config.sampling.update(t_start=1, n_steps=3)
    with pytest.raises(UserError, match="n_steps=3 is too many from t = 1"):
        run_lib.compare(config, trained, 4)
    with pytest.raises(UserError, match="needs eval.enable_fid"):
        run_lib.sweep(config, trained)


def test_training_that_diverges_is_stopped_by_name(config, tmp_path):
    """Catches NaN that is saved over a good checkpoint, or scored as images."""
    config.optim.update(lr=1e30, warmup=0, schedule="constant")
    with pytest.raises(UserError, match="lower optim.lr"):
        run_lib.train(config, tmp_path / "run")
    assert checkpoints.saved_steps(tmp_path / "run") == []


def test_eval_repeats_the_loss_that_training_logged(config, tmp_path, monkeypatch):
    """Catches raw weights instead of averaged ones, a wrong key or batch size, or a missing evaluation."""
    real_load = datasets.load
    monkeypatch.setattr(
        datasets, "load", lambda config, split: datasets.Split(real_load(config, "train").images[:20], None)
    )
    config.training.eval_freq = 3
    run_lib.train(config, tmp_path)
    logged = [line["eval_loss"] for line in metrics_of(tmp_path) if "eval_loss" in line]
    assert len(logged) == 2 and logged[0] != logged[1]
    config.eval.update(enable_loss=True, enable_fid=False, batch_size=7)
    assert run_lib.evaluate(config, tmp_path)["eval_loss"] == pytest.approx(logged[1], rel=1e-5)


def test_nan_in_samples_is_no_score(config, trained, monkeypatch):
    """Catches NaN that is rounded to grey levels and saved as an image."""
    broken = Denoiser(lambda x, t: x * np.nan, NoiseSchedule.linear())
    monkeypatch.setattr(evaluation, "make_denoiser", lambda *_: broken)
    with pytest.raises(UserError, match="NaN or infinity"):
        run_lib.sample(config, trained, 2)


def test_later_frequencies_delete_nothing_and_fewer_steps_change_nothing(config, tmp_path):
    """Catches checkpoints deleted by a later run, and a config replaced by that of a shorter run."""
    config.training.update(n_iters=4, snapshot_freq=1, snapshot_sampling=False)
    run_lib.train(config, tmp_path)
    config.training.update(n_iters=8, snapshot_freq=4, snapshot_freq_for_preemption=1)
    run_lib.train(config, tmp_path)
    assert checkpoints.saved_steps(tmp_path) == [1, 2, 4, 7, 8]
    before = (tmp_path / "config.json").read_bytes()
    config.training.n_iters = 2
    run_lib.train(config, tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before


def test_statistics_of_another_range_are_not_used(config):
    """Catches a Gaussian of images in [-1, 1] used for a network with the range [0, 1]."""
    centered = statistics.stats_path(config, statistics.GAUSSIAN)
    config.data.centered = False
    assert statistics.stats_path(config, statistics.GAUSSIAN) != centered


def drawn_images(config, batch_size, sampler="ddpm"):
    """Draws twelve images from pure noise with a network that is not zero. They depend only on the config.

    The grid starts at 500. At 999 the predicted x_0 amplifies the rounding of eps by 1 / signal = 160, which on some
    CPUs is more than the tolerance of the tests.
    """
    graphdef, state = losses.create_state(config)
    params = jax.tree.map(lambda leaf: leaf + 0.02, state.params)
    config.sampling.update(sampler=sampler, n_steps=4)
    denoiser = run_lib.make_denoiser(config, graphdef, params)
    shape = datasets.image_shape(config)
    batches = generate(
        config, denoiser, mixture=None, timesteps=time_grid(4, 500), image_shape=shape, num=12, batch_size=batch_size
    )
    return np.concatenate([np.asarray(x0)[:count] for x0, count in batches])


@pytest.mark.parametrize("baseline", ["", "no_history", "isotropic"])
def test_a_late_start_is_the_solvers_history(config, rng, baseline):
    """Catches a history that does not reach the solver, is not switched off, or has a wrong Gaussian or noise."""
    config.sampling.update(sampler="unipc_2", n_steps=4, gls=True, baseline=baseline)
    grid = time_grid(4, 500)
    shape = datasets.image_shape(config)
    gaussian = DataGaussian.fit([rng.normal(0, 0.5, (99, *shape))])
    denoiser = Denoiser(lambda x, t: 0.5 * x, NoiseSchedule.linear())
    [(found, _)] = generate(
        config, denoiser, gaussian.mixture(), timesteps=grid, image_shape=shape, num=8, batch_size=8
    )
    mixture = gaussian.mixture().isotropic() if baseline == "isotropic" else gaussian.mixture()
    component = np.zeros(8, int)
    noise, _ = prior(config.seed, first=0, batch_size=8, image_shape=shape)
    x = mixture.sample(noise, component, denoiser.schedule.alpha_bar(500))
    history = functools.partial(mixture.predictions, noise, component)
    known = {} if baseline == "no_history" else {"history": history}
    np.testing.assert_allclose(found, sampling.sample("unipc_2", denoiser, x, grid, **known), atol=2e-5)
    other = {"history": history} if baseline == "no_history" else {}
    assert np.abs(found - sampling.sample("unipc_2", denoiser, x, grid, **other)).max() > 1e-3


def test_what_starts_from_pure_noise_has_no_history(config):
    """Catches a crash of training with --gls, whose sample grids start from pure noise and have no history."""
    images = drawn_images(config, 12, "unipc_2")
    config.sampling.gls = True
    np.testing.assert_array_equal(drawn_images(config, 12, "unipc_2"), images)


def test_same_images_for_any_batch_size_and_device_count(config, tmp_path):
    """Catches noise that depends on the position in a batch or on the device instead of the index of the image."""
    alone = drawn_images(config, 12)
    assert np.abs(alone[0] - alone[1]).max() > 0.1
    rounding = 1e-6 * np.abs(alone).max()
    np.testing.assert_allclose(drawn_images(config, 5), alone, atol=rounding)
    code = f"""
import numpy as np, jax
from configs.ddpm import digits
from tests.test_run_lib import drawn_images
assert jax.device_count() == 4
config = digits.get_config()
config.model.update(ch_mult=(1,), attn_resolutions=())
np.save({str(tmp_path / "four.npy")!r}, drawn_images(config, 5))
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    subprocess.run([sys.executable, "-c", code], env=os.environ | flags, check=True, cwd=files.REPOSITORY)
    np.testing.assert_allclose(np.load(tmp_path / "four.npy"), alone, atol=rounding)


def test_import_cut_short_leaves_no_workdir_that_looks_whole(config, tmp_path, trained, monkeypatch):
    """Catches a config without weights. make would treat it as a finished import, and later commands would fail."""
    run_lib.export_weights(config, trained, tmp_path / "exported.npz")

    def cut(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(losses, "state_of", cut)
        run_lib.import_weights(config, tmp_path / "imported", tmp_path / "exported.npz")
    assert not (tmp_path / "imported/config.json").exists()
    run_lib.import_weights(config, tmp_path / "imported", tmp_path / "exported.npz")
    assert (tmp_path / "imported/config.json").exists()


def test_import_after_export_is_the_same_checkpoint(config, tmp_path, trained):
    """Catches weights that are lost, or raw weights instead of averaged ones, in diffusers' format and back."""
    run_lib.export_weights(config, trained, tmp_path / "exported")
    run_lib.import_weights(config, tmp_path / "imported", tmp_path / "exported")
    original = final_state(config, trained)
    imported = final_state(config, tmp_path / "imported")
    jax.tree.map(np.testing.assert_array_equal, imported.ema, original.ema)
    jax.tree.map(np.testing.assert_array_equal, imported.params, original.ema)
    with pytest.raises(UserError, match="holds checkpoints already"):
        run_lib.import_weights(config, tmp_path / "imported", tmp_path / "exported")


def test_network_of_edm_needs_its_file_alone(tmp_path):
    """Catches a workdir without its network's settings, a lost schedule or output, and times rounded to integers."""
    source = files.REPOSITORY / "tests/data/edm/VE_B.pkl"
    workdir = tmp_path / "edm"
    run_lib.import_weights(imported.get_config(str(source)), workdir, source)
    with np.load(source.with_name("io.npz")) as golden:
        x, sigma, expected = (golden[f"VE_B_{name}"] for name in ("x", "sigma", "D"))
    found = jax.jit(Denoiser.denoise)(run_lib.load_denoiser(workdir), x, sigma)
    largest = np.abs(expected).max(axis=(1, 2, 3), keepdims=True)
    assert (np.abs(found - expected) < 1e-5 * largest).all()
    config = stored.get_config(workdir)
    assert (config.sampling.sampler, config.sampling.spacing) == ("heun", "sigma_rho")
    config.sampling.n_steps = 3
    folder = run_lib.sample(config, workdir, num=2, file_format="npz")
    with np.load(folder / "samples.npz") as drawn:
        assert drawn["images"].shape == (2, 8, 8, 3)
