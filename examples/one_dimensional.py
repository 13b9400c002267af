"""Symmetry breaking in one dimension, as in the paper's introduction: data are +1 and -1, and the score is exact.

python -m examples.one_dimensional

Draws forward paths, backward paths with and without a late start, an animation of the potential well that splits in
two, the bifurcation diagram, and the distance between samples and data for each late start. Pictures and numbers are
written to results/one_dimensional.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Real
from scipy.stats import wasserstein_distance

import sampling
from core import files, plots
from core.diffusion import Denoiser, NoiseSchedule
from core.files import REPOSITORY
from core.shapes import Images, RandomKey
from sampling.time_grid import time_grid
from symmetry.critical import continuous_times, critical_times
from symmetry.exact import Mixture

DATA = Mixture.points([[1.0], [-1.0]])
SCHEDULE = NoiseSchedule.linear()
T = SCHEDULE.num_timesteps
T_CRITICAL = float(critical_times(1.0, SCHEDULE, "equal_norm"))
SPREAD = 0.1  # standard deviation of the data about +1 and -1 where samples are compared with data
SAMPLES = 4000
LATE = 400  # the t at which the paths with a late start begin
X = np.linspace(-2.2, 2.2, 221)


def eps_fn(x: Images, t: Real[Array, "batch"]) -> Images:
    """Returns the exact noise prediction. An image is a single number."""
    return DATA.eps(x, SCHEDULE.alpha_bar(t))


@jax.jit
def forward_paths(rng: RandomKey, x: Float[Array, "paths"]) -> Float[Array, "times paths"]:
    """Noises data x step by step: x <- sqrt(1 - beta) x + sqrt(beta) noise. Returns x at t = -1, 0, ..., T - 1."""

    def step(x, row):
        beta, key = row
        return jnp.sqrt(1 - beta) * x + jnp.sqrt(beta) * jax.random.normal(key, x.shape), x

    end, paths = jax.lax.scan(step, x, (jnp.asarray(SCHEDULE.betas), jax.random.split(rng, T)))
    return jnp.concatenate([paths, end[None]])


@jax.jit
def backward_paths(
    rng: RandomKey, x: Float[Array, "paths"], times: Int[Array, "steps"]
) -> Float[Array, "steps+1 paths"]:
    """Runs DDPM from x at times[0]. Returns the states at `times`, which descend by 1, and at t = -1.

    A step is x <- (x - beta / sigma eps) / sqrt(1 - beta) + sqrt(beta) noise.
    """

    def step(x, row):
        t, key = row
        beta = jnp.asarray(SCHEDULE.betas)[t]
        eps = eps_fn(x[:, None, None, None], jnp.full(len(x), t))[:, 0, 0, 0]
        mean = (x - beta / SCHEDULE.sigma(t) * eps) / jnp.sqrt(1 - beta)
        return mean + jnp.where(t > 0, jnp.sqrt(beta), 0) * jax.random.normal(key, x.shape), x

    end, paths = jax.lax.scan(step, x, (times, jax.random.split(rng, len(times))))
    return jnp.concatenate([paths, end[None]])


def branches(times: Real[np.ndarray, "times"]) -> Float[np.ndarray, "times"]:
    """Returns the upper stable fixed point at each time. It is 0 before the split."""
    return np.array([DATA.minima(float(SCHEDULE.alpha_bar(t))).max() for t in times])


def potential(t: ArrayLike) -> Float[np.ndarray, "points"]:
    """Returns the potential u at the points X, for beta = 1, shifted so that its lowest value is 0."""
    u = jax.vmap(DATA.potential, (0, None))(jnp.asarray(X)[:, None], SCHEDULE.alpha_bar(t))
    return np.asarray(u - u.min())


def few_steps(sampler: str, n_steps: int, starts: Int[np.ndarray, "starts"]) -> Float[np.ndarray, "starts"]:
    """Returns the Wasserstein distance between samples and data, for each late start.

    Here the data have standard deviation SPREAD about +1 and -1. The starting x is drawn from the Gaussian of the
    noised data, which has mean 0 and variance ab (1 + SPREAD^2) + 1 - ab.
    """
    data = Mixture(DATA.means, np.full(2, SPREAD**2), DATA.weights)
    denoiser = Denoiser(lambda x, t: data.eps(x, SCHEDULE.alpha_bar(t)), SCHEDULE)
    noise = jax.random.normal(jax.random.key(1), (SAMPLES, 2))
    exact = jnp.where(jnp.arange(SAMPLES) % 2, 1, -1) + SPREAD * noise[:, 1]

    @jax.jit
    def draw(t_start, timesteps):
        x = jnp.sqrt(1 + SCHEDULE.alpha_bar(t_start) * SPREAD**2) * noise[:, 0]
        return sampling.sample(sampler, denoiser, x[:, None, None, None], timesteps=timesteps, rng=jax.random.key(2))

    drawn = [np.ravel(draw(start, time_grid(n_steps, int(start)))) for start in starts]
    return np.array([wasserstein_distance(x0, exact) for x0 in drawn])


def draw_paths(axis: Any, times: Int[np.ndarray, "times"], paths: Float[np.ndarray, "times paths"], title: str) -> None:
    """Draws paths on matplotlib axes. Paths whose value at the data end is above zero are red."""
    data_end = paths[np.argmin(times)]
    for path, end in zip(paths.T, data_end, strict=True):
        axis.plot(times, path, color="tab:red" if end > 0 else "tab:blue", linewidth=0.5, alpha=0.5)
    axis.axvline(T_CRITICAL, color="0.3", linestyle="--", linewidth=1)
    axis.set(title=title, xlabel="t", xlim=(times[0], times[-1]), ylim=(-3.5, 3.5))


def draw_bifurcation(axis: Any, times: Real[np.ndarray, "times"], stable: Float[np.ndarray, "times"]) -> None:
    """Draws the stable fixed points, and the unstable one between them, on matplotlib axes."""
    axis.plot(times, stable, color="tab:blue", label="stable")
    axis.plot(times, -stable, color="tab:blue")
    axis.plot(times[stable > 0], 0 * times[stable > 0], ":", color="tab:red", label="unstable")
    axis.axvline(T_CRITICAL, color="0.3", linestyle="--", linewidth=1, label=f"critical, t = {T_CRITICAL:.1f}")
    axis.set(title="fixed points", xlabel="t", xlim=(times[0], times[-1]))
    axis.legend(fontsize=8)


def draw_well(axis: Any, t: ArrayLike) -> None:
    """Draws the potential at one time on matplotlib axes, with dots at its minima."""
    u = potential(t)
    minima = DATA.minima(float(SCHEDULE.alpha_bar(t)))[:, 0]
    axis.plot(X, u, color="tab:blue")
    axis.plot(minima, np.interp(minima, X, u), "o", color="tab:red")
    axis.set(title=f"t = {t:.0f}", xlabel="x", ylim=(-0.15, 2), yticks=[])


def animate(path: Path, times: Real[np.ndarray, "times"]) -> None:
    """Saves a GIF of the potential, one frame per time."""
    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.animation import FuncAnimation, PillowWriter

    figure, axis = pyplot.subplots(figsize=(4, 3), layout="constrained")

    def frame(t):
        axis.clear()
        draw_well(axis, t)

    with files.replacing(path) as temporary:
        FuncAnimation(figure, frame, times).save(temporary, PillowWriter(fps=12), dpi=80)
    pyplot.close(figure)


def save_paths(out: Path) -> None:
    """Writes paths.png and paths.npz."""
    noise_rng, forward_rng, backward_rng = jax.random.split(jax.random.key(0), 3)
    noise = jax.random.normal(noise_rng, (100,))
    down = np.arange(T - 1, -1, -1)
    late = np.arange(LATE, -1, -1)
    forward = np.asarray(forward_paths(forward_rng, jnp.where(jnp.arange(100) % 2, 1.0, -1.0)))
    backward = np.asarray(backward_paths(backward_rng, noise, down))
    late_backward = np.asarray(backward_paths(backward_rng, noise, late))
    with plots.panels(out / "paths.png", (12, 3.6), columns=3, sharey=True, layout="constrained") as axes:
        draw_paths(axes[0, 0], np.arange(-1, T), forward, title="forward: data to noise")
        draw_paths(axes[0, 1], np.append(down, -1), backward, title="backward: noise to data")
        draw_paths(axes[0, 2], np.append(late, -1), late_backward, title=f"backward, with a late start at {LATE}")
    files.write_npz(out / "paths.npz", {"forward": forward, "backward": backward, "late_backward": late_backward})


def save_bifurcation(out: Path) -> None:
    """Writes bifurcation.png and bifurcation.npz."""
    times = np.concatenate([np.arange(999, 330, -20), np.arange(330, 250, -2), np.arange(250, -1, -10)])
    stable = branches(times)
    starts = np.arange(50, 1000, 50)
    errors = {sampler: few_steps(sampler, 5, starts) for sampler in ("ddpm", "ddim")}
    with plots.panels(out / "bifurcation.png", (10, 3.6), columns=2, layout="constrained") as axes:
        draw_bifurcation(axes[0, 0], times, stable)
        for sampler, error in errors.items():
            axes[0, 1].plot(starts, error, "o-", markersize=3, label=f"{sampler}, 5 steps")
        axes[0, 1].axvline(T_CRITICAL, color="0.3", linestyle="--", linewidth=1)
        axes[0, 1].set(title="distance of samples to data", xlabel="t of the late start", xlim=(999, 0))
        axes[0, 1].legend(fontsize=8)
    files.write_npz(out / "bifurcation.npz", {"t": times, "stable": stable, "t_start": starts, **errors})


def main(out: Path) -> None:
    """Writes all pictures and numbers into a folder."""
    save_paths(out)
    save_bifurcation(out)
    animate(out / "potential.gif", np.concatenate([np.arange(999, 450, -50), np.arange(450, 100, -10), [60] * 8]))
    [alpha_bar] = DATA.splitting_alpha_bars()
    critical = {
        "theta_c": float(np.sqrt(alpha_bar)),
        "t_c": T_CRITICAL,
        "s_c": float(continuous_times(alpha_bar, SCHEDULE)),
    }
    files.write_json(out / "critical.json", critical)
    print(f"theta_c = {critical['theta_c']:.10f}, found numerically; (sqrt(2) - 1)^(1/2) = {(2**0.5 - 1) ** 0.5:.10f}")
    print(f"t_c = {T_CRITICAL:.1f}; pictures, animation and numbers: {out}")


if __name__ == "__main__":
    main(REPOSITORY / "results/one_dimensional")
