import functools
import json
import shutil

import numpy as np
import pytest
import scipy.linalg
from PIL import Image

from core.errors import UserError
from metrics import frechet, statistics
from metrics.features import Features
from metrics.frechet import Reference, frechet_distance
from metrics.labels import Labeller
from metrics.tally import Tally
from sampling.late_start import DataGaussian


def moments_of(samples):
    return np.mean(samples, axis=0, dtype=np.float64), np.cov(samples, rowvar=False, dtype=np.float64)


@pytest.fixture(scope="module")
def golden():
    """The distances that pytorch-fid computes (see tests/data/README.md)."""
    return np.load("tests/data/frechet.npz", allow_pickle=False)


def test_full_rank_distance_is_that_of_pytorch_fid(golden):
    """Catches a wrong square root, trace or normalisation of the covariance."""
    moments = [golden[f"full_{kind}_{side}"] for side in "ab" for kind in ("mean", "cov")]
    assert frechet_distance(*moments) == pytest.approx(float(golden["full_fid"]), rel=1e-6)


def test_rank_deficient_distance_is_that_of_pytorch_fid(golden):
    """Catches a failing Cholesky factor for too few samples, and a fallback that changes the covariance."""
    distance = frechet_distance(*moments_of(golden["deficient_a"]), *moments_of(golden["deficient_b"]))
    assert distance == pytest.approx(float(golden["deficient_fid"]), rel=1e-6)


def test_distance_of_gaussians_in_closed_form(rng):
    """Catches a wrong term. If the covariances commute, the distance is a sum over their eigenvectors."""
    basis = scipy.linalg.qr(rng.standard_normal((6, 6)))[0]
    a, b = rng.uniform(0.1, 4, (2, 6))
    mean = rng.standard_normal(6)
    expected = mean @ mean + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    found = frechet_distance(mean, (basis * a) @ basis.T, np.zeros(6), (basis * b) @ basis.T)
    assert found == pytest.approx(expected, rel=1e-10)


def test_distance_is_symmetric_and_zero_to_itself(rng):
    """Catches arguments that are treated differently, and a distance below zero by rounding."""
    a, b = (moments_of(rng.standard_normal((50, 8)) * scale) for scale in (1, 3))
    assert frechet_distance(*a, *b) == pytest.approx(frechet_distance(*b, *a), rel=1e-10)
    assert frechet_distance(*a, *a) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("broken", [{"cov1": np.full((2, 2), np.nan)}, {"mean2": np.zeros(3)}, {"cov2": np.eye(3)}])
def test_distance_refuses_moments_that_give_no_number(broken):
    """Catches NaN in a table of scores, and moments of two feature networks."""
    moments = {"mean1": np.zeros(2), "cov1": np.eye(2), "mean2": np.zeros(2), "cov2": np.eye(2)}
    with pytest.raises(ValueError, match="NaN|fit together"):
        frechet_distance(**moments | broken)


FEATURES = Features(extract=None, dim=3, name="classifier", score_name="FD", note="", digest="one", resize="none")
LABELLER = Labeller(None, "digits")


def tally_of(vectors, labels=None, **options):
    tally = Tally(vectors.shape[1], **options)
    tally.update(vectors, labels)
    return tally


@pytest.fixture
def stored(config, rng):
    """Saves the statistics of ten vectors in the test's folder."""
    tally = tally_of(rng.standard_normal((10, 3)), np.array([4, 6]), groups=1)
    return statistics.save_reference(config, FEATURES, tally, labeller=LABELLER)


def test_statistics_come_back_as_they_were_saved(config, stored):
    """Catches an array that is lost, renamed or rounded by saving."""
    reference = statistics.load_reference(config, FEATURES, LABELLER)
    np.testing.assert_allclose(reference.cov, np.cov(reference.features, rowvar=False), rtol=1e-6)
    assert reference.description == "digits, train split, 10 images"
    assert reference.label_counts.tolist() == [4, 6]
    assert statistics.load_reference(config, FEATURES).label_counts is None


@pytest.mark.parametrize(
    ("field", "value"), [("dataset", "mnist"), ("split", "test"), ("image_size", 9), ("statistics", 1)]
)
def test_statistics_of_anything_else_are_refused(config, stored, field, value):
    """Catches a score against statistics of another data set, split, size or version."""
    arrays = dict(np.load(stored))
    arrays["origin"] = np.asarray(json.dumps(json.loads(str(arrays["origin"])) | {field: value}))
    np.savez(stored, **arrays)
    with pytest.raises(UserError, match=f"its {field} is {value}.*run --mode=fid_stats again"):
        statistics.load_reference(config, FEATURES)


def test_statistics_of_images_that_have_changed_are_refused(config, tmp_path, rng):
    """Catches late starts and scores from statistics that were made before images were added to the folder."""
    photos = tmp_path / "photos"
    photos.mkdir()
    images = rng.integers(0, 256, (20, 8, 8, 1), np.uint8)
    Image.fromarray(images[0, ..., 0]).save(photos / "1.png")
    config.data.update(dataset="custom", path=str(photos))
    statistics.save_gaussian(config, DataGaussian.fit([images]), images)
    statistics.save_reference(config, FEATURES, tally_of(rng.standard_normal((10, 3)), groups=1))
    loads = (
        functools.partial(statistics.load_gaussian, config),
        functools.partial(statistics.load_reference, config, FEATURES),
    )
    for load in loads:
        load()
    Image.fromarray(images[1, ..., 0]).save(photos / "2.png")
    for load in loads:
        with pytest.raises(UserError, match="photos have changed since it was made: run --mode=fid_stats again"):
            load()
    shutil.rmtree(photos)
    for load in loads:
        load()  # if the images are missing, they are not compared


def test_statistics_of_other_features_or_labels_are_refused(config, stored):
    """Catches scores between features of two networks, and between labels of two classifiers."""
    with pytest.raises(UserError, match="features_sha256 is one, this config's two"):
        statistics.load_reference(config, FEATURES._replace(digest="two"))
    config.eval.classifier = "faces:attributes"
    with pytest.raises(UserError, match="labels of digits, not of faces:attributes"):
        statistics.load_reference(config, FEATURES, Labeller(None, "faces:attributes"))


@pytest.mark.parametrize("mean", [np.array(["a", "b", "c"]), np.full(3, np.nan)])
def test_published_statistics_that_are_not_numbers_are_refused(config, tmp_path, mean):
    """Catches a traceback from numpy, and a score of NaN."""
    np.savez(tmp_path / "theirs.npz", mu=mean, sigma=np.eye(3))
    config.eval.reference = str(tmp_path / "theirs.npz")
    with pytest.raises(UserError, match="not all finite numbers"):
        statistics.load_reference(config, FEATURES)


@pytest.mark.parametrize("name", ["sigma", "cov"])
def test_published_statistics_are_read(config, tmp_path, rng, name):
    """Catches a format that is refused: pytorch-fid and EDM write mu and sigma, the paper's code mu and cov."""
    mean, cov = moments_of(rng.standard_normal((50, 3)))
    np.savez(tmp_path / "theirs.npz", mu=mean, **{name: cov})
    config.eval.reference = str(tmp_path / "theirs.npz")
    reference = statistics.load_reference(config, FEATURES)
    np.testing.assert_array_equal(reference.cov, cov)
    assert reference.features is None and "does not say" in reference.description
    with pytest.raises(UserError, match="of 4 classifier features"):
        statistics.load_reference(config, FEATURES._replace(dim=4))


def repeated(rng, repeats, count, dim):
    """Returns the distances of `repeats` sets of standard normal vectors to a Gaussian of mean 0.3 and variance 2."""
    reference = Reference(mean=np.full(dim, 0.3), cov=2 * np.eye(dim), digest="", description="")
    return [frechet.distance(tally_of(rng.standard_normal((count, dim))).groups, reference) for _ in range(repeats)]


def test_error_bar_is_the_spread_of_repeated_runs(rng):
    """Catches an error that is wrong by a factor such as the number of groups. 300 runs give the spread to 4%."""
    found = repeated(rng, repeats=300, count=200, dim=5)
    error = np.sqrt(np.mean([run.error**2 for run in found]))
    assert error == pytest.approx(np.std([run.value for run in found]), rel=0.15)
    assert error == pytest.approx(np.std([run.at_infinity for run in found]), rel=0.15)


def test_limit_for_infinitely_many_samples_is_the_true_distance(rng):
    """Catches a wrong extrapolation in 1/N. With 200 samples in 20 dimensions the bias is large."""
    dim = 20
    found = repeated(rng, repeats=40, count=200, dim=dim)
    truth = dim * (0.3**2 + (np.sqrt(2) - 1) ** 2)
    bias = np.mean([run.value for run in found]) - truth
    assert bias > 0.7
    assert abs(np.mean([run.at_infinity for run in found]) - truth) < 0.15 * bias


def test_too_few_samples_give_no_error_and_no_limit(rng):
    """Catches an error or a limit computed from too few samples, and a singular covariance without a warning."""
    reference = Reference(mean=np.zeros(20), cov=np.eye(20), digest="", description="")
    found = frechet.distance(tally_of(rng.standard_normal((70, 20))).groups, reference)
    assert found.error is not None and found.at_infinity is None
    with pytest.warns(UserWarning, match="15 samples for 20 features"):
        assert frechet.distance(tally_of(rng.standard_normal((15, 20))).groups, reference).error is None
    with pytest.raises(ValueError, match="at least 2 vectors, has 1"), pytest.warns(UserWarning):
        frechet.distance(tally_of(rng.standard_normal((1, 20))).groups, reference)
