"""The loss, the optimisers and a train step, against values in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import losses
from core.diffusion import Denoiser, NoiseSchedule
from models import make_denoiser
from sampling.late_start import DataGaussian

SCHEDULE = NoiseSchedule.linear()


def loss_of(eps_fn, x0):
    t_key, noise_key = jax.random.split(jax.random.key(0))
    t = jax.random.randint(t_key, x0.shape[:1], 0, 1000)
    return losses.ddpm_loss(Denoiser(eps_fn, SCHEDULE), x0, t=t, noise=jax.random.normal(noise_key, x0.shape))


def test_loss_of_the_exact_prediction_on_gaussian_data(rng):
    """Catches wrong noise, time or weighting.

    The smallest possible loss on N(0, s^2) is the mean over t of ab s^2 / (ab s^2 + 1 - ab).
    """
    s2 = 0.25
    x0 = jnp.asarray(rng.standard_normal((4000, 4, 4, 1)), jnp.float32) * s2**0.5
    gaussian = DataGaussian(np.zeros(16), np.eye(16), np.full(16, s2), residual_variance=0.0, image_shape=(4, 4, 1))
    exact = loss_of(lambda x, t: gaussian.eps(x, SCHEDULE.alpha_bar(t)), x0)
    ab = np.asarray(SCHEDULE.alpha_bars)
    assert exact.shape == (4000,)
    assert float(exact.mean()) == pytest.approx(np.mean(ab * s2 / (ab * s2 + 1 - ab)), rel=0.03)


def test_loss_of_the_prediction_zero_is_the_noise_variance():
    """Catches a loss that is not a mean over the values of an image."""
    loss = loss_of(lambda x, t: jnp.zeros_like(x), jnp.ones((500, 8, 8, 1)))
    assert float(loss.mean()) == pytest.approx(1, rel=0.02)


def test_learning_rate_warms_up_then_holds_or_falls_to_zero(config):
    """Catches a cosine that starts before the end of the warm-up, or that does not end at n_iters."""
    config.optim.update(lr=0.5, warmup=10, schedule="constant")
    config.training.n_iters = 110
    assert [float(losses.learning_rate(config)(step)) for step in (0, 5, 10, 109)] == [0, 0.25, 0.5, 0.5]
    config.optim.schedule = "cosine"
    found = [float(losses.learning_rate(config)(step)) for step in (0, 5, 10, 60, 110)]
    np.testing.assert_allclose(found, [0, 0.25, 0.5, 0.25, 0], atol=1e-7)


@pytest.mark.parametrize("weighting", [0, 0.5, 1])
def test_loss_is_weighted_by_a_power_of_alpha_bar(config, weighting):
    """Catches a wrong power. A new network predicts v = 0, so the squared error of its eps on grey images is ab^2."""
    config.model.prediction = "v"
    config.training.weighting = weighting
    graphdef, state = losses.create_state(config)
    step = losses.make_train_step(config, graphdef)
    _, metrics = step(state, jnp.full((2000, 8, 8, 1), 127, jnp.uint8))
    assert float(metrics["loss"]) == pytest.approx(np.mean(SCHEDULE.alpha_bars ** (2 - weighting)), rel=0.05)


@pytest.fixture
def stepped(config):
    """Returns (the state before a step on grey images, the state after it, the metrics, the config)."""
    config.optim.update(warmup=0, schedule="constant", grad_clip=1e-3)
    graphdef, state = losses.create_state(config)
    before = jax.tree.map(np.asarray, state)
    step = losses.make_train_step(config, graphdef)
    after, metrics = step(state, jnp.full((8, 8, 8, 1), 99, jnp.uint8))
    return before, after, metrics, config


def test_first_adam_step_has_the_size_of_the_learning_rate(stepped):
    """Catches clipping after Adam, no bias correction or a wrong epsilon. The step is lr * g / (|g| + eps)."""
    before, after, metrics, config = stepped
    assert float(metrics["gradient_norm"]) > config.optim.grad_clip  # so the gradient is clipped
    clipped = [np.asarray(nu) ** 0.5 / (1 - 0.999) ** 0.5 for nu in jax.tree.leaves(after.opt_state[2].nu)]
    assert np.sqrt(sum(np.sum(g**2) for g in clipped)) == pytest.approx(config.optim.grad_clip, rel=1e-3)
    moved = zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), clipped, strict=True)
    for old, new, size in moved:
        np.testing.assert_allclose(np.abs(new - old), config.optim.lr * size / (size + config.optim.eps), atol=1e-7)


def test_muon_step_is_orthogonal_for_kernels_and_adams_for_the_rest(config, rng):
    """Catches a convolution updated by Adam, split per pixel, or scaled unlike Adam; and a step uphill."""
    config.optim.update(optimizer="Muon", lr=0.5, warmup=0, schedule="constant")
    shapes = {"convolution": (3, 3, 4, 8), "product": (6, 5), "bias": (8,)}
    gradient = {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
    optimizer = losses.make_optimizer(config)
    step, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
    for name, inputs in {"convolution": 36, "product": 6}.items():
        matrix, downhill = (np.asarray(tree[name]).reshape(inputs, -1) for tree in (step, gradient))
        stretches = np.linalg.svd(matrix, compute_uv=False) / (0.2 * 0.5 * inputs**0.5)
        assert ((stretches > 0.6) & (stretches < 1.3)).all()  # the Newton-Schulz iteration ends near 1
        assert np.sum(matrix * downhill) < 0
    nesterov = 1 + config.optim.beta1 * (1 - config.optim.beta1) / (1 - config.optim.beta1**2)
    np.testing.assert_allclose(step["bias"], -0.5 * nesterov * np.sign(gradient["bias"]), rtol=1e-4)


def test_ema_follows_its_ramp(stepped):
    """Catches a wrong decay. It should be min(ema_rate, (1 + k) / (10 + k)) with k from 1, as in the paper's code."""
    before, after, _, _ = stepped
    assert int(after.step) == 1
    triples = zip(*(jax.tree.leaves(tree) for tree in (before.ema, after.params, after.ema)), strict=True)
    for old, new, ema in triples:
        np.testing.assert_allclose(ema, 2 / 11 * old + 9 / 11 * np.asarray(new), atol=1e-7)


def test_weight_decay_joins_the_gradient(config):
    """Catches decoupled decay (AdamW). With a zero gradient, L2 decay as in the paper gives a full Adam step."""
    config.optim.update(weight_decay=0.1, warmup=0, schedule="constant")
    optimizer = losses.make_optimizer(config)
    params = {"w": jnp.array([2.0, -3.0])}
    updates, _ = optimizer.update({"w": jnp.zeros(2)}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], [-config.optim.lr, config.optim.lr], rtol=1e-4)


def test_eval_loss_depends_on_weights_and_image_only(config):
    """Catches dropout, a loss that depends on the position in the batch, and a compilation for every set of weights."""
    graphdef, state = losses.create_state(config)
    images = jnp.arange(4 * 64, dtype=jnp.uint8).reshape(4, 8, 8, 1)
    keys = jax.random.split(jax.random.key(1), 4)
    params = jax.tree.map(lambda leaf: leaf + 0.05, state.ema)  # the last layer is not 0, so dropout would show
    denoiser = make_denoiser(config, graphdef, params)
    found = losses.eval_loss(denoiser, images, keys, centered=True)
    compiled = losses.eval_loss._cache_size()
    reversed_order = losses.eval_loss(denoiser, images[::-1], keys[::-1], centered=True)
    np.testing.assert_allclose(reversed_order[::-1], found, rtol=1e-5)
    losses.eval_loss(make_denoiser(config, graphdef, state.ema), images, keys, centered=True)
    assert losses.eval_loss._cache_size() == compiled
    config.model.dropout = 0.0
    without_dropout, _ = losses.create_state(config)
    denoiser = make_denoiser(config, without_dropout, params)
    np.testing.assert_allclose(losses.eval_loss(denoiser, images, keys, centered=True), found)


def test_dequantization_moves_pixels_by_less_than_one_level(config):
    """Catches noise with a wrong scale or a mean that is not zero. The loss should change by less than 1%."""
    graphdef, state = losses.create_state(config)
    state = losses.state_of(config, 0, jax.tree.map(lambda leaf: leaf + 0.02, state.params), ema=state.ema)
    images = jnp.full((8, 8, 8, 1), 100, jnp.uint8)
    metrics = []
    for config.data.uniform_dequantization in (False, True):
        _, found = losses.make_train_step(config, graphdef)(jax.tree.map(jnp.copy, state), images)
        metrics.append(float(found["loss"]))
    assert metrics[0] != metrics[1] == pytest.approx(metrics[0], rel=0.01)
