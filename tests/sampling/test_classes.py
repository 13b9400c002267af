"""Sampling from networks with classes: labels of images, guidance, and late starts from the class of the label."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs.ddpm import digits
from configs.validation import validate
from core.diffusion import Denoiser, NoiseSchedule, per_image
from core.errors import UserError
from sampling.generate import generate
from sampling.late_start import DataMixture

SHAPE = (2, 2, 1)


def config_of(**fields):
    config = digits.get_config()
    config.model.update(name="adm", label_dim=4)
    config.sampling.n_steps = 2
    config.sampling.update(fields)
    return config


def draw(config, network, mixture=None, *, num=12, batch_size=12) -> np.ndarray:
    """Generated images [num, 4], by a network that predicts x_0."""
    denoiser = Denoiser(network, NoiseSchedule.linear(), "x0")
    timesteps = np.array([2] if mixture else [999, 0], np.int32)
    options = {"image_shape": SHAPE, "num": num, "batch_size": batch_size}
    drawn = [np.asarray(x0)[:count] for x0, count in generate(config, denoiser, mixture, timesteps, **options)]
    return np.concatenate(drawn).reshape(num, -1)


def label_itself(x, t, labels):
    """Predicts that every pixel is the label."""
    return jnp.broadcast_to(per_image(labels, x), x.shape)


def test_labels_depend_on_the_seed_and_the_index_and_are_uniform():
    """Catches labels that change with the batch size or repeat with the seed, and classes that are not balanced."""
    labels = draw(config_of(), label_itself)[:, 0]
    np.testing.assert_array_equal(labels, draw(config_of(), label_itself, batch_size=5)[:, 0])
    other = config_of()
    other.seed += 1
    assert (labels != draw(other, label_itself)[:, 0]).any()
    many = np.bincount(draw(config_of(), label_itself, num=100, batch_size=100)[:, 0].astype(int), minlength=4)
    assert (np.abs(many - 25) <= 2).all()


def test_only_the_given_classes_and_never_the_null_class_are_drawn():
    """Catches classes that are ignored, and images of the null class."""
    assert set(draw(config_of(classes=(3, 1)), label_itself)[:, 0]) == {1, 3}
    config = config_of()
    config.model.null_class = 2
    assert set(draw(config, label_itself)[:, 0]) == {0, 1, 3}


def test_guidance_extrapolates_from_the_null_class():
    """Catches a weight of the wrong one of the two predictions."""
    config = config_of(guidance=3.0)
    config.model.null_class = 4  # a label beyond the classes, as in EDM's networks
    plain = config_of()
    np.testing.assert_allclose(draw(config, label_itself), 4 + 3 * (draw(plain, label_itself) - 4))


def test_late_start_is_from_the_class_of_the_label():
    """Catches starts from the components in another order than the labels, and weights other than the labels'."""
    basis = np.full((4, 1), 0.5)
    mixture = DataMixture(
        mean=np.zeros(4),
        eigenvectors=basis,
        weights=np.array([0.7, 0.2, 0.1]),
        means=2.0 * np.array([[3.0], [0.0], [1.0]]),  # every pixel of a class is its label
        rotations=np.zeros((3, 0, 0)),
        variances=np.zeros((3, 1)),
        residual_variances=np.zeros(3),
        image_shape=SHAPE,
    )
    config = config_of(gls=True, components="labels", classes=(3, 0, 1))
    excess = draw(config, lambda x, t, labels: x - per_image(labels, x), mixture)
    assert np.abs(excess).max() < 0.2  # the noise at t = 2


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"classes": (4,)}, "not among the network's 4 classes"),
        ({"guidance": 2.0}, "trained with a null class"),
        ({"sampler": "ode"}, "takes no labels"),
        ({"gls": True, "components": "10"}, "choose 'labels' or '1'"),
    ],
)
def test_refusals(fields, says):
    """Catches settings that would draw images of other classes, or end in a traceback."""
    with pytest.raises(UserError, match=says):
        validate(config_of(**fields))


def test_guidance_and_a_late_start_exclude_each_other():
    """Catches a start from the Gaussian of the class, where guided images are not."""
    config = config_of(guidance=2.0, gls=True)
    config.model.null_class = 4
    with pytest.raises(UserError, match="exclude each other"):
        validate(config)
