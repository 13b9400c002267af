"""The samplers against results of other software, exact solutions, and the order and cost that they declare."""

import functools
import importlib
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from scipy import optimize, stats

import sampling
from core.diffusion import Denoiser, NoiseSchedule, per_image
from core.rng import image_keys, image_noise
from sampling.common import clip_x0, lagrange, transfer
from sampling.late_start import DataGaussian
from sampling.time_grid import time_grid

DATA = Path(__file__).parents[1] / "data"
FIXED_STEP = [name for name in sampling.SAMPLERS if name != "ode"]
WITH_HISTORY = [name for name, sampler in sampling.SAMPLERS.items() if sampler.history_from]
SCHEDULE = NoiseSchedule.linear()


@pytest.fixture
def x64():
    """Enables float64 in all threads. The context manager `jax.enable_x64` does not reach the threads of callbacks."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def on_device(tree):
    """For closures: jax 0.10 confuses the precisions of a NumPy array that both float32 and float64 code captured."""
    return jax.tree.map(jnp.asarray, tree)


def gaussian_eps(schedule, mean, variance):
    """Returns the exact noise prediction for independent pixels (or channels, as mean broadcasts) N(mean, variance)."""
    schedule, mean, variance = on_device((schedule, mean, variance))

    def eps(x, t):
        ab = per_image(schedule.alpha_bar(t), x)
        return jnp.sqrt(1 - ab) * (x - jnp.sqrt(ab) * mean) / (ab * variance + 1 - ab)

    return eps


def mixture_eps(schedule, means, std, log_weights):
    """Returns the exact noise prediction for a mixture of Gaussians with means [k,H,W,C] and equal std."""
    schedule, means, log_weights = on_device((schedule, means, log_weights))

    def eps(x, t):
        ab = per_image(schedule.alpha_bar(t), x[:, None])
        variance = ab * std**2 + 1 - ab
        offsets = x[:, None] - jnp.sqrt(ab) * means
        log_densities = log_weights - (offsets**2 / (2 * variance)).sum(axis=(2, 3, 4))
        shares = jax.nn.softmax(log_densities, axis=1)[..., None, None, None]
        return (jnp.sqrt(1 - ab) / variance * shares * offsets).sum(axis=1)

    return eps


def run(name, eps_fn, schedule, x, timesteps, rng=None):
    return jax.jit(functools.partial(sampling.sample, name))(
        Denoiser(eps_fn, schedule), jnp.asarray(x), jnp.asarray(timesteps), rng
    )


# Golden numbers


def golden(file, dtype):
    """Returns a file's arrays in NHWC, and the noise prediction that made them, with log weights rounded to float32."""
    with np.load(DATA / file) as stored:
        arrays = {name: np.moveaxis(a, 1, -1).astype(dtype) if a.ndim == 4 else a for name, a in stored.items()}
    ab = arrays.get("alpha_bars", SCHEDULE.alpha_bars)
    schedule = NoiseSchedule(1 - ab / np.append(1, ab[:-1]), ab)
    exact = mixture_eps(
        schedule, arrays["means_nchw"], arrays["std"].astype(dtype), np.log(arrays["weights"]).astype(dtype)
    )
    return arrays, schedule, lambda x, t: exact(x, jnp.clip(jnp.floor(t), 0, 999))


@pytest.mark.parametrize("name", ["ddim", "pndm"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-3)])
def test_agrees_with_the_papers_code(name, dtype, tolerance):
    """Catches a wrong index into alpha_bar, a wrong last step, wrong Runge-Kutta or Adams-Bashforth weights."""
    with jax.enable_x64(dtype == "float64"):
        arrays, schedule, eps_fn = golden("samplers_gmm.npz", dtype)
        cases = [case.removeprefix("grid_") for case in arrays if case.startswith("grid_")]
        assert len(cases) == 9
        grids = {n: [case for case in cases if case.endswith(f"_n{n}")] for n in (3, 5, 10)}
        for same_n in grids.values():
            sample = jax.jit(functools.partial(sampling.sample, name, Denoiser(eps_fn, schedule)))
            for case in same_n:
                x0 = sample(arrays["x_start_nchw"], arrays[f"grid_{case}"])
                expected = arrays[f"{name}_{case}"]
                assert x0.dtype == dtype
                np.testing.assert_allclose(x0, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_3m", "unipc_2", "unipc_3"])
@pytest.mark.parametrize("grid", ["g0", "g1"])
def test_agrees_with_diffusers(name, grid):
    """Catches a wrong coefficient or order at any step. The steps of g1 are uneven."""
    arrays, schedule, eps_fn = golden("samplers_diffusers.npz", np.float32)
    x0 = run(name, eps_fn, schedule, arrays["x_start_nchw"], arrays[f"grid_{grid}"])
    expected = arrays[f"{name}_{grid}"]
    np.testing.assert_allclose(x0, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


# Orders of convergence, between fixed times HIGH and LOW, on a schedule so fine that steps can be halved

FINE = NoiseSchedule.linear(1e-4 / 8, 0.02 / 8, 8000)
HIGH = 6000
LOW = 6000 - 4096
MEANS = np.array([0.5, -0.3, 0.8])
VARIANCES = np.array([4.0, 0.3, 0.01])
MIXTURE_MEANS = np.array([1.0, -0.6])
MIXTURE_STD = 0.3
MIXTURE_WEIGHTS = np.array([0.3, 0.7])
STARTS = np.repeat(np.linspace(-2, 2, 6)[:, None, None, None], 4, axis=3)


def fine_eps(x, t):
    """Returns the noise prediction for three channels of Gaussian data and one of a mixture, all independent."""
    mixture = mixture_eps(FINE, MIXTURE_MEANS[:, None, None, None], MIXTURE_STD, np.log(MIXTURE_WEIGHTS))
    return jnp.concatenate([gaussian_eps(FINE, MEANS, VARIANCES)(x[..., :3], t), mixture(x[..., 3:], t)], axis=-1)


@functools.cache
def exact_states():
    """Moves STARTS from HIGH to LOW along the probability-flow ODE, which preserves quantiles in one dimension."""
    ab_high, ab_low = np.exp(FINE.log_alpha_bars)[[HIGH + 1, LOW + 1]]
    states = np.sqrt(ab_low) * MEANS + np.sqrt(
        (ab_low * VARIANCES + 1 - ab_low) / (ab_high * VARIANCES + 1 - ab_high)
    ) * (STARTS[..., :3] - np.sqrt(ab_high) * MEANS)

    def cdf(x, ab):
        return MIXTURE_WEIGHTS @ stats.norm.cdf(x, np.sqrt(ab) * MIXTURE_MEANS, np.sqrt(ab * MIXTURE_STD**2 + 1 - ab))

    def same_quantile(x):
        return optimize.brentq(lambda y: cdf(y, ab_low) - cdf(x, ab_high), -9, 9, xtol=1e-14)

    mixture = np.vectorize(same_quantile)(STARTS[..., 3:])
    return np.concatenate([states, mixture], axis=-1)


def errors_at_low(name, grid, history=None):
    """Returns the errors of the state at a sampler's last network evaluation, at LOW: (Gaussian channels, mixture)."""
    options = {"history": history, "callback": lambda call: call.x}
    sample = jax.jit(functools.partial(sampling.sample, name, Denoiser(fine_eps, FINE), **options))
    _, states = sample(jnp.asarray(STARTS), jnp.asarray(grid))
    assert len(states) == sampling.nfe(name, len(grid))
    error = states[-1] - exact_states()
    return np.linalg.norm(error[..., :3]), np.linalg.norm(error[..., 3:])


def measured_orders(name, grids, history=None):
    """Returns the slopes of log error over log step. The step is halved from grid to grid."""
    errors = np.log2([errors_at_low(name, grid, history) for grid in grids])
    return -np.polyfit(np.arange(len(grids)), errors, 1)[0]


@pytest.mark.parametrize("name", [name for name, sampler in sampling.SAMPLERS.items() if sampler.order])
def test_converges_at_the_declared_order(name, x64):
    """Catches a wrong coefficient that coarse golden grids would hide, or Heun's first slope used twice."""
    grids = [np.linspace(HIGH, LOW, steps + 1).astype(int) for steps in (64, 128, 256)]
    np.testing.assert_allclose(measured_orders(name, grids), sampling.lookup(name).order, atol=0.3)


@pytest.mark.parametrize(("name", "order"), [("unipc_3", 4), ("deis_3", 4)])
def test_full_order_where_the_ends_are_graded(name, order, x64):
    """Catches a wrong order of the middle steps. The first and last steps are graded so as not to limit the order."""

    def graded(longest):
        doubling = 2 ** np.arange(np.log2(longest), dtype=int)
        steps = [*doubling, *[longest] * ((HIGH - LOW) // longest - 2), *doubling[::-1], 2]
        return HIGH - np.append(0, np.cumsum(steps))

    np.testing.assert_allclose(measured_orders(name, [graded(128), graded(64), graded(32)]), order, atol=0.35)


@pytest.mark.parametrize("name", WITH_HISTORY)
def test_history_opens_at_order_2(name, x64):
    """Catches a history at a wrong time, or of the wrong quantity, or one that the first step does not use.

    For Gaussian data the history is exact, so the error of one step is proportional to its length cubed.
    """
    gaussian = DataGaussian(MEANS, np.eye(3), VARIANCES, residual_variance=0.0, image_shape=(1, 1, 3))
    noise = jnp.asarray(STARTS[..., :3])
    denoiser = Denoiser(lambda x, t: gaussian.eps(x, FINE.alpha_bar(t)), FINE)

    def errors(history):
        sample = functools.partial(sampling.sample, name, denoiser, history=history, callback=lambda call: call.x)
        found = []
        for step in (64, 32, 16):
            grid = jnp.array([HIGH, HIGH - step, LOW, LOW // 2, 0])
            _, states = jax.jit(sample)(gaussian.sample(noise, FINE.alpha_bar(HIGH)), grid)
            found.append(np.linalg.norm(states[1] - gaussian.sample(noise, FINE.alpha_bar(HIGH - step))))
        return -np.diff(np.log2(found))

    np.testing.assert_allclose(errors(None), 2, atol=0.2)
    np.testing.assert_allclose(errors(functools.partial(gaussian.predictions, noise)), 3, atol=0.2)


@pytest.mark.parametrize("name", WITH_HISTORY)
def test_history_of_a_gaussian_keeps_order_2_on_a_mixture(name, x64):
    """Catches a history used without the network's prediction at the start. With such a jump, the order was 1.2."""
    mean = MIXTURE_WEIGHTS @ MIXTURE_MEANS
    variance = MIXTURE_WEIGHTS @ (MIXTURE_STD**2 + MIXTURE_MEANS**2) - mean**2
    gaussian = DataGaussian(np.append(MEANS, mean), np.eye(4), np.append(VARIANCES, variance), 0.0, (1, 1, 4))
    ab = FINE.alpha_bar(HIGH)
    noise = (STARTS - np.sqrt(ab) * gaussian.mean) / np.sqrt(ab * gaussian.eigenvalues + 1 - ab)
    np.testing.assert_allclose(gaussian.sample(noise, ab), STARTS, atol=1e-12)
    grids = [np.linspace(HIGH, LOW, steps + 1).astype(int) for steps in (64, 128, 256)]
    history = functools.partial(gaussian.predictions, jnp.asarray(noise))
    _, on_mixture = measured_orders(name, grids, history)
    assert on_mixture > 1.85


def test_ode_is_the_exact_solution(x64):
    """Catches a wrong drift, a wrong inverse of lambda(t), and a tolerance that is not met."""
    expected = FINE.predict_x0(exact_states(), LOW, fine_eps(exact_states(), jnp.full(len(STARTS), LOW)))
    np.testing.assert_allclose(run("ode", fine_eps, FINE, STARTS, [HIGH, LOW]), expected, rtol=0, atol=1e-8)


# Moments on Gaussian data


def ddpm_moments(grid, mean, variance):
    """Returns mean and variance of DDPM's result on data N(mean, variance), by Ho et al. (2020), equations 6 and 7."""
    ab = np.exp(SCHEDULE.log_alpha_bars)
    m = np.sqrt(ab[grid[0] + 1]) * mean
    v = ab[grid[0] + 1] * variance + 1 - ab[grid[0] + 1]
    for t, s in zip(grid, [*grid[1:], -1], strict=True):
        ab_t = ab[t + 1]
        ab_s = ab[s + 1]
        alpha = ab_t / ab_s
        denoise = np.sqrt(ab_t) * variance / (ab_t * variance + 1 - ab_t)
        x0_weight = np.sqrt(ab_s) * (1 - alpha) / (1 - ab_t)
        x_weight = np.sqrt(alpha) * (1 - ab_s) / (1 - ab_t)
        slope = x0_weight * denoise + x_weight
        m = slope * m + x0_weight * (1 - denoise * np.sqrt(ab_t)) * mean
        v = slope**2 * v + (1 - alpha) * (1 - ab_s) / (1 - ab_t)
    return m, v


@pytest.mark.parametrize(("n_steps", "to_data"), [(1, 0.3), (3, 0.3), (10, 0.3), (1000, 0.004)])
def test_ddpm_mean_and_variance(n_steps, to_data, x64, monkeypatch):
    """Catches wrong posterior weights or a wrong variance at any step. Many steps approach the moments of the data.

    For Gaussian data a step is linear, so images that start at 0 or 1 and get one unit of noise, or none, show the
    whole map.
    """
    mean = 0.7
    variance = 0.2
    grid = time_grid(n_steps, 999)
    x = np.zeros((n_steps + 2, 1, 1, 1))
    x[-1] = 1
    monkeypatch.setattr(
        importlib.import_module("sampling.ddim"),  # the module, not the function that sampling imports under this name
        "image_noise",
        lambda keys, i, like: per_image(jnp.arange(n_steps + 2) == i, like),
    )
    x0 = run("ddpm", gaussian_eps(SCHEDULE, mean, variance), SCHEDULE, x, grid, jax.random.key(0)).ravel()
    offset = x0[-2]
    from_noise = x0[:-2] - x0[-2]
    from_start = x0[-1] - x0[-2]
    ab = SCHEDULE.alpha_bars[999]
    moments = (
        offset + from_start * np.sqrt(ab) * mean,
        from_start**2 * (ab * variance + 1 - ab) + (from_noise**2).sum(),
    )
    np.testing.assert_allclose(moments, ddpm_moments(grid, mean, variance), rtol=1e-9)
    np.testing.assert_allclose(moments, (mean, variance), atol=to_data)


def test_ddpm_noise_is_fresh_at_each_step():
    """Catches one noise used at every step, or noise without unit variance, which the previous test cannot find."""
    grid = time_grid(5, 999)
    x = jax.random.normal(jax.random.key(1), (4, 128, 128, 1))
    x0 = run("ddpm", gaussian_eps(SCHEDULE, 0.0, 1.0), SCHEDULE, x, grid, jax.random.key(0))
    np.testing.assert_allclose(np.var(x0), ddpm_moments(grid, 0.0, 1.0)[1], rtol=0.025)  # 4.5 standard errors


@pytest.fixture
def correlated():
    """Returns data of 12 dimensions with a full covariance."""
    rng = np.random.default_rng(0)
    return DataGaussian.fit([rng.normal(size=(40, 12)).cumsum(axis=1).reshape(40, 2, 2, 3) / 3 + 0.2])


@pytest.mark.parametrize(("name", "n_steps", "tolerance"), [("ddim", 401, 0.02), ("unipc_3", 60, 1e-3)])
def test_late_start_returns_the_datas_mean_and_covariance(name, n_steps, tolerance, correlated, x64):
    """Catches wrong moments of the images. Start and sampler are linear in the noise, so basis vectors show them."""
    covariance = correlated.eigenvectors * correlated.eigenvalues @ correlated.eigenvectors.T
    noise = np.concatenate([np.zeros((1, 12)), np.eye(12)]).reshape(13, 2, 2, 3)
    x_start = correlated.sample(jnp.asarray(noise), SCHEDULE.alpha_bar(400))
    eps_fn = lambda x, t: correlated.eps(x, SCHEDULE.alpha_bar(t))  # noqa: E731
    x0 = np.asarray(run(name, eps_fn, SCHEDULE, x_start, time_grid(n_steps, 400))).reshape(13, 12)
    linear = x0[1:] - x0[0]
    np.testing.assert_allclose(x0[0], correlated.mean, atol=tolerance * np.abs(correlated.mean).max())
    np.testing.assert_allclose(linear.T @ linear, covariance, atol=tolerance * correlated.eigenvalues[0])


# Network evaluations and compilations


def evaluations(jaxpr):
    """Returns how often a program calls the callback of a counting model. The lengths of scans are multiplied."""
    total = 0
    for equation in jaxpr.eqns:
        total += equation.primitive.name == "debug_callback"
        inner = sum(evaluations(sub) for sub in jaxprs_in_params(equation.params))
        total += equation.params.get("length", 1) * inner
    return total


@pytest.mark.parametrize("name", FIXED_STEP)
def test_nfe(name):
    """Catches a wrong declared number of evaluations, and a network that is inlined more often as n grows."""
    traced = []

    def counting_eps(x, t):
        traced.append(t)
        jax.debug.callback(lambda _: None, t)
        return x

    sites = []
    for n_steps in range(1, 13):
        traced.clear()
        sample = functools.partial(sampling.sample, name, Denoiser(counting_eps, SCHEDULE), rng=jax.random.key(0))
        program = jax.make_jaxpr(sample)(jnp.zeros((1, 1, 1, 1)), time_grid(n_steps, 999))
        assert evaluations(program.jaxpr) == sampling.nfe(name, n_steps), n_steps
        sites.append(len(traced))
    assert max(sites) == sites[4] == sites[11]


def test_nfe_of_the_paper():
    """Catches an NFE of PNDM that differs from the paper's tables, and a number for an adaptive sampler."""
    assert [sampling.nfe("pndm", n) for n in (3, 5, 10)] == [12, 14, 19]
    assert [sampling.nfe("heun", n) for n in (1, 5)] == [1, 9]
    assert sampling.nfe("ode", 5) is None


@pytest.mark.parametrize("name", FIXED_STEP)
def test_one_compilation_serves_all_starts(name):
    """Catches a sampler that is compiled again for other values of the grid."""
    denoiser = Denoiser(gaussian_eps(SCHEDULE, 0.0, 0.5), SCHEDULE)
    compiled = jax.jit(functools.partial(sampling.sample, name))
    results = [
        compiled(denoiser, jnp.ones((1, 1, 1, 1)), time_grid(5, t_start), jax.random.key(0))
        for t_start in (999, 600, 301)
    ]
    assert compiled._cache_size() == 1
    assert len({float(x0.squeeze()) for x0 in results}) == 3


# Properties of all samplers


@pytest.mark.parametrize("name", WITH_HISTORY)
@pytest.mark.parametrize(("n_steps", "t_start"), [(1, 999), (4, 998)])
def test_history_of_few_steps_from_early_starts(name, n_steps, t_start, correlated):
    """Catches NaN if the time of the history is beyond the schedule, or if a single step does not define it."""
    noise = jax.random.normal(jax.random.key(0), (4, 2, 2, 3))
    eps_fn = lambda x, t: correlated.eps(x, SCHEDULE.alpha_bar(t))  # noqa: E731
    x = correlated.sample(noise, SCHEDULE.alpha_bar(t_start))
    history = functools.partial(correlated.predictions, noise)
    x0 = jax.jit(functools.partial(sampling.sample, name, Denoiser(eps_fn, SCHEDULE), history=history))(
        x, time_grid(n_steps, t_start)
    )
    assert np.isfinite(x0).all()


@pytest.mark.parametrize(("name", "n_steps"), [*itertools.product(FIXED_STEP, [1, 2]), ("ode", 1)])
def test_few_steps(name, n_steps):
    """Catches NaN from lambda = infinity or from a missing history. One step predicts x_0, except with PNDM."""
    eps_fn = gaussian_eps(SCHEDULE, 0.1, 0.5)
    x = jnp.linspace(-2, 2, 6).reshape(2, 1, 1, 3)
    x0 = run(name, eps_fn, SCHEDULE, x, time_grid(n_steps, 400), jax.random.key(0))
    assert np.isfinite(x0).all()
    if n_steps == 1 and name != "pndm":
        expected = SCHEDULE.predict_x0(x, 400, eps_fn(x, jnp.full(2, 400.0)))
        np.testing.assert_allclose(x0, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", list(sampling.SAMPLERS))
def test_float32_stays_float32_beside_float64(name, x64):
    """Catches a table of weights that promotes the images to float64 if another part of the program has enabled it."""
    sample = functools.partial(
        sampling.sample, name, Denoiser(gaussian_eps(SCHEDULE, 0.0, 0.5), SCHEDULE), rng=jax.random.key(0)
    )
    assert jax.eval_shape(sample, jnp.ones((1, 1, 1, 1), jnp.float32), time_grid(5, 999)).dtype == jnp.float32


def test_same_image_for_any_batch():
    """Catches noise drawn per batch instead of per image. Images must not depend on the batch or on the order."""
    indices = jnp.array([5, 0, 3, 12])
    keys = image_keys(jax.random.key(7), indices)
    x = image_noise(keys, 0, jnp.zeros((4, 2, 2, 1)))
    sample = jax.jit(functools.partial(sampling.sample, "ddpm", Denoiser(gaussian_eps(SCHEDULE, 0.3, 0.5), SCHEDULE)))
    grid = time_grid(4, 999)
    order = np.array([2, 0, 3, 1])
    together = sample(x, grid, keys)
    alone = jnp.concatenate([sample(x[i : i + 1], grid, keys[i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(alone, together, atol=1e-6)
    np.testing.assert_allclose(sample(x[order], grid, keys[order]), together[order], atol=1e-6)
    counted = sample(x, grid, jax.random.key(7))
    np.testing.assert_allclose(
        counted[0], sample(x[:1], grid, image_keys(jax.random.key(7), indices[1:2]))[0], atol=1e-6
    )
    assert len(np.unique(together)) == together.size


@pytest.mark.parametrize("name", ["ddpm", "pndm", "dpmpp_3m", "unipc_2", "deis_3"])
def test_clip_x0_keeps_the_result_in_range(name):
    """Catches a wrapper that a sampler cannot use, for example in PNDM's call at t = -1."""
    wild = lambda x, t: -3 * x  # noqa: E731
    x = jax.random.normal(jax.random.key(0), (2, 2, 2, 1))
    x0 = run(name, clip_x0(Denoiser(wild, SCHEDULE)).eps, SCHEDULE, x, time_grid(3, 999), jax.random.key(0))
    assert np.isfinite(x0).all()
    if name != "pndm":  # PNDM ends in a mean of several predictions
        assert np.abs(x0).max() <= 1 + 1e-4


def test_clip_x0():
    """Catches noise that does not give the clipped x_0, or that changes where nothing is clipped."""
    x = jnp.linspace(-3, 3, 12).reshape(3, 2, 2, 1)
    for t in (jnp.zeros(3), jnp.full(3, 500.0), jnp.array([0.0, 500.0, 999.0])):
        wild = lambda x, t: 2 * jnp.cos(x)  # noqa: E731
        x0 = SCHEDULE.predict_x0(x, t, wild(x, t))
        clipped = SCHEDULE.predict_x0(x, t, clip_x0(Denoiser(wild, SCHEDULE)).eps(x, t))
        np.testing.assert_allclose(clipped, np.clip(x0, -1, 1), atol=1e-4)
    tame = lambda x, t: (x - per_image(SCHEDULE.signal(t), x) * 0.5) / per_image(SCHEDULE.sigma(t), x)  # noqa: E731
    np.testing.assert_array_equal(clip_x0(Denoiser(tame, SCHEDULE)).eps(x, 500), tame(x, jnp.full(3, 500.0)))


def test_errors():
    """Catches an obscure error for an unknown name, a missing rng, or a callback of an adaptive sampler."""
    x = jnp.zeros((1, 1, 1, 1))
    denoiser = Denoiser(lambda x, t: x, SCHEDULE)
    with pytest.raises(ValueError, match="'dimm' is not known; choose from ddpm, ddim, pndm, .*, ode"):
        sampling.sample("dimm", denoiser, x, np.array([0]))
    with pytest.raises(ValueError, match="'ddpm' draws noise and needs an rng"):
        sampling.sample("ddpm", denoiser, x, np.array([0]))
    with pytest.raises(ValueError, match="'ode' is adaptive"):
        sampling.sample("ode", denoiser, x, np.array([5, 0]), callback=lambda call: call.t)


@pytest.mark.parametrize("name", FIXED_STEP)
def test_callback_sees_every_network_evaluation(name):
    """Catches an evaluation that is missing or out of order, and images that a callback changes."""
    called = []

    def eps_fn(x, t):
        jax.debug.callback(lambda x, t: called.append((float(t[0]), np.asarray(x))), x, t, ordered=True)
        return 0.5 * x

    x = jnp.linspace(-1, 1, 12).reshape(1, 2, 2, 3)
    sample = functools.partial(sampling.sample, name, Denoiser(eps_fn, SCHEDULE), rng=jax.random.key(0))
    x0, calls = jax.jit(lambda x: sample(x, time_grid(5, 900), callback=lambda call: call))(x)
    jax.effects_barrier()
    assert [t for t, _ in called] == calls.t.tolist()
    np.testing.assert_array_equal(np.stack([x for _, x in called]), calls.x)
    np.testing.assert_allclose(calls.eps, 0.5 * calls.x)
    np.testing.assert_allclose(calls.x0[0], SCHEDULE.predict_x0(calls.x[0], calls.t[0], calls.eps[0]), rtol=1e-5)
    np.testing.assert_allclose(x0, jax.jit(lambda x: sample(x, time_grid(5, 900)))(x), rtol=1e-5)


# Building blocks


@pytest.mark.parametrize(("t", "s"), [(999, 0), (1, 0), (0, -1), (500, 499)])
def test_transfer_keeps_its_digits_in_float32(t, s):
    """Catches sigma_s - a sigma_t or 1 - ab computed as differences, near clean data and for short steps."""
    ab_t, ab_s = np.exp(SCHEDULE.log_alpha_bars)[[t + 1, s + 1]]
    a = np.sqrt(ab_s / ab_t)
    expected = a, np.sqrt(1 - ab_s) - a * np.sqrt(1 - ab_t)
    np.testing.assert_allclose(transfer(SCHEDULE, t, s), expected, rtol=1e-4 if t - s == 1 else 2e-6)


def test_lagrange():
    """Catches a basis that does not reproduce polynomials of degree k - 1, or that uses nodes beyond the k-th."""
    nodes = np.array([[0.0, -1.0, -2.5, -3.0], [0.0, -1.0, 0.0, 0.0]])
    points = np.linspace(-1, 2, 5)[None]
    basis = lagrange(nodes, np.array([4, 2]), points)
    np.testing.assert_allclose(
        np.einsum("k,kq->q", nodes[0] ** 3 - nodes[0], basis[0]), (points**3 - points)[0], atol=1e-4
    )
    np.testing.assert_allclose(np.einsum("k,kq->q", 2 * nodes[1] + 1, basis[1]), (2 * points + 1)[0], atol=1e-5)
    np.testing.assert_array_equal(basis[1, 2:], 0)
