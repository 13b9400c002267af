"""Inputs and outputs of networks in all conventions: identities between them, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.conventions import CONVENTIONS, PREDICTIONS, Convention
from core.diffusion import Denoiser, NoiseSchedule, per_image
from core.schedules import continuous, rho_sigmas

EDM = NoiseSchedule.from_sigmas(rho_sigmas(0.002, 80, 1000))
TIMES = jnp.array([0.0, 400.25, 999.0])


def outputs(x0, noise, signal, sigma, own):
    """Returns the output of an exact network for each kind of prediction, from the definitions in the papers."""
    ratio = sigma / signal
    d = own.sigma_data
    c_skip = d**2 / (ratio**2 + d**2)
    c_out = ratio * d / jnp.sqrt(ratio**2 + d**2)
    own_noise = {"ve": ratio, "sigma": ratio}.get(own.name, sigma)  # the factor of the noise in the network's input
    return {
        "eps": noise,
        "v": signal * noise - sigma * x0,
        "x0": x0,
        "flow": noise - x0,
        "score": -noise / own_noise,
        "negative_eps": -noise,
        "edm": (x0 - c_skip * (x0 + ratio * noise)) / c_out,
    }


@pytest.mark.parametrize(
    ("prediction", "name"),
    [
        *((prediction, "ddpm") for prediction in ("eps", "v", "x0", "flow", "score", "negative_eps")),
        ("score", "ve"),
        ("score", "sigma"),
        ("flow", "flow"),
        ("edm", "edm"),
    ],
)
def test_every_output_gives_the_same_noise_and_image(prediction, name):
    """Catches a wrong sign or factor in any prediction, and a score for another scaling of x than the network's."""
    assert prediction in PREDICTIONS
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x0, noise = jnp.asarray(rng.standard_normal((2, 3, 4, 4, 2)))
        own = Convention(name, sigma_data=0.7)
        signal, sigma = per_image(EDM.signal(TIMES), x0), per_image(EDM.sigma(TIMES), x0)
        returned = outputs(x0, noise, signal, sigma, own)[prediction]
        denoiser = Denoiser(lambda x, t: returned, EDM, prediction, own)
        found_x0, found_noise = denoiser.predictions(EDM.diffuse(x0, TIMES, noise), TIMES)
        ratio = per_image(EDM.noise_ratio(TIMES), x0)
        np.testing.assert_allclose(found_noise, noise, atol=1e-10)
        np.testing.assert_allclose(found_x0, x0, atol=1e-10)
        np.testing.assert_allclose(denoiser.denoise(x0 + ratio * noise, EDM.noise_ratio(TIMES)), x0, atol=1e-10)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_inputs_and_times(name):
    """Catches an input that is scaled twice or not at all, and a time in another convention."""
    seen = []

    def network(x, t):
        seen.append((x, t))
        return x

    sigma = np.array([0.05, 0.9, 30.0])
    u = (np.sqrt(0.1**2 + 2 * 19.9 * np.log(1 + sigma**2)) - 0.1) / 19.9
    vp = sigma / np.sqrt(1 + sigma**2)
    schedule = continuous(0.1, 20.0, 1000)
    with jax.enable_x64(True):
        Denoiser(network, schedule, own=Convention(name)).denoise(jnp.ones((3, 1, 1, 1)), sigma)
    nearest = [np.abs(np.sqrt(1 / np.asarray(schedule.alpha_bars) - 1) - s).argmin() for s in sigma]
    factors = {"edm": 1 / np.sqrt(sigma**2 + 0.25), "ve": 1.0, "sigma": 1.0, "ve_index": 1.0, "flow": 1 / (1 + sigma)}
    times = {
        "iddpm": nearest,
        "ve_index": 999 - np.array(nearest),
        "vp": 999 * u,
        "sigma": sigma,
        "ve": np.log(sigma / 2),
        "edm": np.log(sigma) / 4,
        "flow": 1000 * sigma / (1 + sigma),
    }
    (x, t), *_ = seen
    np.testing.assert_allclose(x[:, 0, 0, 0], factors.get(name, vp / sigma), rtol=1e-12)
    if name in ("ddpm", "rescaled"):  # equal, because there are 1000 times
        np.testing.assert_allclose(schedule.noise_ratio(t), sigma, rtol=1e-5)
    else:
        np.testing.assert_allclose(t, times[name], rtol=1e-10)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", CONVENTIONS)
def test_clean_data_give_finite_predictions(name, prediction):
    """Catches log 0 and division by 0 at t = -1, where PNDM may evaluate the network."""
    denoiser = Denoiser(lambda x, t: x + per_image(t, x), EDM, prediction, Convention(name))
    for found in denoiser.predictions(jnp.ones((2, 1, 1, 1)), -1):
        assert jnp.isfinite(found).all()
