import dataclasses
import hashlib
import json

import numpy as np
import pytest

import evaluation
from core import files
from core.diffusion import Denoiser, NoiseSchedule
from core.errors import UserError
from evaluation import EvalContext, EvalRun
from metrics import results, statistics
from metrics.features import Features
from metrics.frechet import Reference
from metrics.labels import Labeller
from sampling.late_start import DataGaussian

CONTEXT = EvalContext(
    checkpoint_step=7,
    weights_sha256="weights",
    denoiser=Denoiser(lambda x, t: x, NoiseSchedule.linear()),
    gaussian_sha256="sha",
)

INCEPTION = Features(extract=None, dim=2048, name="inception", score_name="FID", note="", digest="", resize="bilinear")


def settings_of(config, **changes):
    """Returns the settings of a run with this config in CONTEXT, after changing fields of CONTEXT."""
    return EvalRun(config, dataclasses.replace(CONTEXT, **changes)).settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sampling.sampler", "pndm"),
        ("sampling.n_steps", 4),
        ("sampling.spacing", "quadratic"),
        ("sampling.clip_x0", True),
        ("sampling.gls", True),
        ("sampling.baseline", "afs"),
        ("eval.num_samples", 99),
        ("seed", 1),
    ],
)
def test_different_settings_have_different_folders(config, field, value):
    """Catches a run with another seed, grid or count that replaces a stored result, or is replaced by it."""
    before = settings_of(config)
    config.update_from_flattened_dict({field: value})
    after = settings_of(config)
    assert before != after
    assert results.folder_name(before) != results.folder_name(after)


@pytest.mark.parametrize(
    ("sampler", "n_steps", "gls", "baseline", "known"),
    [
        ("unipc_3", 5, True, "", True),
        ("unipc_3", 5, True, "isotropic", True),
        ("unipc_3", 5, True, "no_history", False),
        ("unipc_3", 5, False, "", False),
        ("unipc_3", 4, True, "", False),
        ("ipndm", 3, True, "", True),
        ("pndm", 4, True, "", False),
    ],
)
def test_settings_include_whether_the_solver_has_a_history(config, sampler, n_steps, gls, baseline, known):
    """Catches a late start with a history that has the same settings as one without."""
    config.sampling.update(sampler=sampler, n_steps=n_steps, gls=gls, baseline=baseline)
    assert bool(settings_of(config)["history"]) is known


def test_scores_of_other_weights_are_not_taken(config, tmp_path):
    """Catches scores of an old network used for a new one in the same workdir, at the same step."""
    settings = settings_of(config)
    files.write_json(tmp_path / results.folder_name(settings) / "result.json", settings)
    assert results.finished(settings, tmp_path) == settings
    assert results.finished(settings_of(config, weights_sha256="others"), tmp_path) is None


def test_what_took_more_work_is_not_replaced(config):
    """Catches a run that replaces one with more saved images, a loss, bits per dimension or other labels."""
    config.eval.num_samples = 500
    names = [results.folder_name(settings_of(config))]
    for change in ({"eval_loss": 0.5}, {"bits_per_dim": {"ode": 4.0}}, {"labeller": Labeller(None, "faces:smiles")}):
        names.append(results.folder_name(settings_of(config, **change)))
    config.eval.enable_sampling = True
    names.append(results.folder_name(settings_of(config)))
    assert len(set(names)) == 5


def test_given_starts_of_an_automatic_grid_have_different_folders(config):
    """Catches a start missing in the settings, or one folder for all starts, if only the grid is automatic."""
    config.sampling.update(n_steps=4, spacing="auto")
    assert settings_of(config)["t_start"] == 999
    config.sampling.update(gls=True, t_start=400)
    settings = settings_of(config)
    assert settings["t_start"] == 400 and "t_last" not in settings
    assert "gls400" in results.folder_name(settings)
    config.sampling.t_start = -1
    assert "t_start" not in settings_of(config)


def test_scores_of_other_features_or_statistics_have_different_folders(config):
    """Catches an FID that replaces the distance of classifier features, or a score against published statistics."""
    classifier = Features(extract=None, dim=3, name="classifier", score_name="FD", note="", digest="", resize="none")
    reference = Reference(mean=np.zeros(3), cov=np.eye(3), digest="f" * 64, description="theirs")
    names = set()
    for path in ("", "theirs.npz"):
        config.eval.reference = path
        for features in (classifier, INCEPTION):
            names.add(results.folder_name(settings_of(config, features=features, reference=reference)))
    assert len(names) == 4


def test_analytic_first_step_is_not_a_network_evaluation(config):
    """Catches AFS counted with as many evaluations as pure noise without AFS, and an NFE for an adaptive sampler."""
    config.sampling.update(sampler="ddim", n_steps=4)
    assert settings_of(config)["nfe"] == 4
    config.sampling.baseline = "afs"
    assert settings_of(config)["nfe"] == 3
    config.sampling.sampler = "ode"
    assert settings_of(config)["nfe"] is None


@pytest.fixture
def gaussian_path(config, rng):
    """Writes the file of a Gaussian of 99 images for this config."""
    images = rng.integers(0, 256, (99, 8, 8, 1), np.uint8)
    return statistics.save_gaussian(config, DataGaussian.fit([images]), images)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.dataset", "mnist", "its dataset is digits, this config's mnist"),
        ("data.image_size", 16, "its image_size is 8, this config's 16"),
        ("data.num_channels", 3, "its num_channels is 1, this config's 3"),
        ("data.centered", False, "its centered is True, this config's False"),
        ("data.path", "/else", "its path is , this config's /else"),
    ],
)
def test_gaussian_of_other_images_is_refused(config, gaussian_path, monkeypatch, field, value, message):
    """Catches a late start from another data set, size or range, even if the file was copied to the right path."""
    monkeypatch.setattr(statistics, "stats_path", lambda *_: gaussian_path)
    assert evaluation.load_gaussian(config)[0].image_shape == (8, 8, 1)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=f"{message}: run --mode=fid_stats again"):
        evaluation.load_gaussian(config)


def test_file_of_a_gaussian_has_an_origin(config, gaussian_path):
    """Catches a digest that is not of the images, and the use of a file without an origin."""
    arrays = dict(np.load(gaussian_path))
    images = np.random.default_rng(0).integers(0, 256, (99, 8, 8, 1), np.uint8)
    origin = json.loads(str(arrays.pop("origin")))
    assert origin["count"] == 99 and origin["images_sha256"] == hashlib.sha256(images.tobytes()).hexdigest()
    np.savez(gaussian_path, **arrays)
    with pytest.raises(UserError, match="does not say which images.*run --mode=fid_stats again"):
        evaluation.load_gaussian(config)
    assert DataGaussian.load(gaussian_path).image_shape == (8, 8, 1)  # as a library, no origin is needed


def test_damaged_gaussian_is_refused(config, gaussian_path):
    """Catches NaN and inconsistent arrays, which would otherwise only give wrong samples."""
    whole = dict(np.load(gaussian_path))
    for name, broken in [("mean", whole["mean"] * np.nan), ("eigenvalues", np.ones(3)), ("image_shape", np.array("x"))]:
        np.savez(gaussian_path, **whole | {name: broken})
        with pytest.raises(UserError, match="gaussian"):
            evaluation.load_gaussian(config)
