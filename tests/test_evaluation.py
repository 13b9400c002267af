import hashlib
import json

import numpy as np
import pytest

import evaluation
from core import files
from core.diffusion import NoiseSchedule
from core.errors import UserError
from metrics import results, statistics
from metrics.features import Features
from metrics.frechet import Reference
from metrics.labels import Labeller
from sampling.late_start import DataGaussian

BENCH = evaluation.Bench(7, "weights", None, NoiseSchedule.linear(), None, "sha", None, None, None, None)

INCEPTION = Features(None, 2048, "inception", "FID", "", "", "bilinear")


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
def test_every_question_has_a_folder_of_its_own(config, field, value):
    """A run of another seed, grid or count that replaces a result, or passes for it."""
    before = evaluation.describe(config, BENCH)
    config.update_from_flattened_dict({field: value})
    after = evaluation.describe(config, BENCH)
    assert before != after
    assert results.folder_name(before) != results.folder_name(after)


@pytest.mark.parametrize(
    ("sampler", "n_steps", "gls", "baseline", "known"),
    [
        ("unipc_3", 4, True, "", True),
        ("unipc_3", 4, True, "isotropic", True),
        ("unipc_3", 4, True, "no_history", False),
        ("unipc_3", 4, False, "", False),
        ("unipc_3", 3, True, "", False),
        ("ipndm", 3, True, "", True),
        ("pndm", 4, True, "", False),
    ],
)
def test_a_result_says_whether_its_solver_knew_the_gaussians_prediction(config, sampler, n_steps, gls, baseline, known):
    """A late start with a history that passes for one without."""
    config.sampling.update(sampler=sampler, n_steps=n_steps, gls=gls, baseline=baseline)
    assert evaluation.describe(config, BENCH)["history"] is known


def test_scores_of_other_weights_are_not_taken(config, tmp_path):
    """A network trained anew in an old workdir, to the same step, that is given the old one's scores."""
    question = evaluation.describe(config, BENCH)
    files.write_json(tmp_path / results.folder_name(question) / "result.json", question)
    assert results.finished(question, tmp_path) == question
    assert results.finished(evaluation.describe(config, BENCH._replace(weights_sha256="others")), tmp_path) is None


def test_what_took_more_work_is_not_replaced(config):
    """Images by the thousand, a loss, bits per dimension or others' labels, gone with the next run without them."""
    config.eval.num_samples = 500
    names = [results.folder_name(evaluation.describe(config, BENCH))]
    for change in ({"eval_loss": 0.5}, {"bits_per_dim": {"ode": 4.0}}, {"labeller": Labeller(None, "faces:smiles")}):
        names.append(results.folder_name(evaluation.describe(config, BENCH._replace(**change))))
    config.eval.enable_sampling = True
    names.append(results.folder_name(evaluation.describe(config, BENCH)))
    assert len(set(names)) == 5


def test_questions_below_one_chosen_grid_differ_by_their_start(config):
    """A start that is given, and lost where the grid below it is left to a trial: no folder, or one for all starts."""
    config.sampling.update(n_steps=4, spacing="auto")
    assert evaluation.describe(config, BENCH)["t_start"] == 999
    config.sampling.update(gls=True, t_start=400)
    question = evaluation.describe(config, BENCH)
    assert question["t_start"] == 400 and "t_last" not in question
    assert "gls400" in results.folder_name(question)
    config.sampling.t_start = -1
    assert "t_start" not in evaluation.describe(config, BENCH)


def test_scores_of_other_features_or_statistics_lie_elsewhere(config):
    """A FID that replaces the distance of a classifier's features, or one against published statistics."""
    features = Features(None, 3, "classifier", "FD", "", "", "none")
    reference = Reference(None, None, "f" * 64, "theirs")
    config.eval.reference = ""
    benches = [BENCH._replace(features=network, reference=reference) for network in (features, INCEPTION)]
    names = {results.folder_name(evaluation.describe(config, bench)) for bench in benches}
    config.eval.reference = "theirs.npz"
    names |= {results.folder_name(evaluation.describe(config, bench)) for bench in benches}
    assert len(names) == 4


def test_analytic_first_step_is_no_evaluation(config):
    """AFS credited with as many evaluations as the full start, or an adaptive sampler with a number."""
    config.sampling.update(sampler="ddim", n_steps=4)
    assert evaluation.describe(config, BENCH)["nfe"] == 4
    config.sampling.baseline = "afs"
    assert evaluation.describe(config, BENCH)["nfe"] == 3
    config.sampling.sampler = "ode"
    assert evaluation.describe(config, BENCH)["nfe"] is None


@pytest.fixture
def gaussian_path(config, rng):
    """The file of a Gaussian of 99 images, for this config."""
    images = rng.integers(0, 256, (99, 8, 8, 1), np.uint8)
    return statistics.save_gaussian(config, DataGaussian.fit([images]), images)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("data.dataset", "mnist", "its dataset is digits, this config's mnist"),
        ("data.image_size", 16, "its image_size is 8, this config's 16"),
        ("data.num_channels", 3, "its num_channels is 1, this config's 3"),
        ("data.centered", False, "its centered is True, this config's False"),
        ("data.path", "/else", "its path is , this config's /else"),
    ],
)
def test_gaussian_of_other_images_is_refused(config, gaussian_path, monkeypatch, field, value, says):
    """A late start from another data set, at another size, or in another range, wherever its file comes from."""
    monkeypatch.setattr(evaluation, "stats_path", lambda *_: gaussian_path)
    assert evaluation.load_gaussian(config)[0].image_shape == (8, 8, 1)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=f"{says}: run --mode=fid_stats again"):
        evaluation.load_gaussian(config)


def test_gaussian_says_what_it_was_made_of(config, gaussian_path):
    """A digest of other bytes than those of the images, or a file that says nothing and is taken all the same."""
    arrays = dict(np.load(gaussian_path))
    images = np.random.default_rng(0).integers(0, 256, (99, 8, 8, 1), np.uint8)
    origin = json.loads(str(arrays.pop("origin")))
    assert origin["count"] == 99 and origin["images_sha256"] == hashlib.sha256(images.tobytes()).hexdigest()
    np.savez(gaussian_path, **arrays)
    with pytest.raises(UserError, match="does not say which images.*run --mode=fid_stats again"):
        evaluation.load_gaussian(config)
    assert DataGaussian.load(gaussian_path).image_shape == (8, 8, 1)  # as a library call it is not asked


def test_damaged_gaussian_is_one_line(config, gaussian_path):
    """NaN, or arrays that do not fit together, found only when samples come out wrong."""
    whole = dict(np.load(gaussian_path))
    for name, broken in [("mean", whole["mean"] * np.nan), ("eigenvalues", np.ones(3)), ("image_shape", np.array("x"))]:
        np.savez(gaussian_path, **whole | {name: broken})
        with pytest.raises(UserError, match="gaussian"):
            evaluation.load_gaussian(config)
