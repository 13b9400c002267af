"""The paper's introduction in one dimension, from scratch: data are +1 and -1, and everything is known exactly.

python examples/one_dimensional.py

Forward and backward paths, the potential well that splits in two (an animation), the bifurcation diagram, and the same
with a late start. Pictures and numbers go to results/one_dimensional.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from scipy.stats import wasserstein_distance

sys.path.insert(0, str(Path(__file__).parent.parent))

import sampling
from core import files, plots
from core.diffusion import NoiseSchedule
from sampling.time_grid import time_grid
from symmetry.critical import continuous_times, critical_times
from symmetry.exact import Mixture

DATA = Mixture.points([[1.0], [-1.0]])
SCHEDULE = NoiseSchedule.linear()
T = SCHEDULE.num_timesteps
T_CRITICAL = float(critical_times(1.0, SCHEDULE, "equal_norm"))
SPREAD = 0.1
X = np.linspace(-2.2, 2.2, 221)


def eps_fn(x: jax.Array, t: jax.Array) -> jax.Array:
    """The exact noise prediction, x [B, 1, 1, 1]."""
    return DATA.eps(x, SCHEDULE.alpha_bar(t))


@jax.jit
def forward_paths(rng: jax.Array, x: jax.Array) -> jax.Array:
    """[T + 1, B], data x [B] noised step by step: x <- sqrt(1 - beta) x + sqrt(beta) noise."""

    def step(x, beta_key):
        beta, key = beta_key
        return jnp.sqrt(1 - beta) * x + jnp.sqrt(beta) * jax.random.normal(key, x.shape), x

    end, paths = jax.lax.scan(step, x, (jnp.asarray(SCHEDULE.betas), jax.random.split(rng, T)))
    return jnp.concatenate([paths, end[None]])


@jax.jit
def backward_paths(rng: jax.Array, x: jax.Array, times: jax.Array) -> jax.Array:
    """[n + 1, B], from x [B] at times[0] down: x <- (x - beta / sigma eps) / sqrt(1 - beta) + sqrt(beta) noise."""

    def step(x, t_key):
        t, key = t_key
        beta = jnp.asarray(SCHEDULE.betas)[t]
        eps = eps_fn(x[:, None, None, None], jnp.full(len(x), t))[:, 0, 0, 0]
        mean = (x - beta / SCHEDULE.sigma(t) * eps) / jnp.sqrt(1 - beta)
        return mean + jnp.where(t > 0, jnp.sqrt(beta), 0) * jax.random.normal(key, x.shape), x

    end, paths = jax.lax.scan(step, x, (times, jax.random.split(rng, len(times))))
    return jnp.concatenate([paths, end[None]])


def branches(times: np.ndarray) -> np.ndarray:
    """[n], the upper stable fixed point at each time: 0 before the split."""
    return np.array([DATA.minima(float(SCHEDULE.alpha_bar(t))).max() for t in times])


def potential(t: float) -> np.ndarray:
    """u at X per unit of beta, with its lowest value at 0."""
    u = jax.vmap(DATA.potential, (0, None))(jnp.asarray(X)[:, None], SCHEDULE.alpha_bar(t))
    return np.asarray(u - u.min())


def few_steps(sampler: str, n_steps: int, starts: np.ndarray) -> np.ndarray:
    """[n], the Wasserstein distance from samples to data of deviation SPREAD about +1 and -1, for every late start.

    The start is drawn from the Gaussian of the noised data: mean 0, variance ab (1 + SPREAD^2) + 1 - ab.
    """
    data = Mixture(DATA.means, np.full(2, SPREAD**2), DATA.weights)
    noise = jax.random.normal(jax.random.key(1), (4000, 2))
    exact = jnp.where(jnp.arange(4000) % 2, 1, -1) + SPREAD * noise[:, 1]

    def exact_eps(x, t):
        return data.eps(x, SCHEDULE.alpha_bar(t))

    @jax.jit
    def draw(t_start, timesteps):
        x = jnp.sqrt(1 + SCHEDULE.alpha_bar(t_start) * SPREAD**2) * noise[:, 0]
        return sampling.sample(sampler, exact_eps, SCHEDULE, x[:, None, None, None], timesteps, jax.random.key(2))

    drawn = [np.ravel(draw(start, time_grid(n_steps, int(start)))) for start in starts]
    return np.array([wasserstein_distance(x0, exact) for x0 in drawn])


def draw_paths(axis, times: np.ndarray, paths: np.ndarray, title: str) -> None:
    """Paths [n, B], red where they end (or begin, for noising) above zero."""
    data_end = paths[np.argmin(times)]
    for path, end in zip(paths.T, data_end, strict=True):
        axis.plot(times, path, color="tab:red" if end > 0 else "tab:blue", linewidth=0.5, alpha=0.5)
    axis.axvline(T_CRITICAL, color="0.3", linestyle="--", linewidth=1)
    axis.set(title=title, xlabel="t", xlim=(times[0], times[-1]), ylim=(-3.5, 3.5))


def draw_bifurcation(axis, times: np.ndarray, stable: np.ndarray) -> None:
    """The stable fixed points, and the unstable one between them."""
    axis.plot(times, stable, color="tab:blue", label="stable")
    axis.plot(times, -stable, color="tab:blue")
    axis.plot(times[stable > 0], 0 * times[stable > 0], ":", color="tab:red", label="unstable")
    axis.axvline(T_CRITICAL, color="0.3", linestyle="--", linewidth=1, label=f"critical, t = {T_CRITICAL:.1f}")
    axis.set(title="fixed points", xlabel="t", xlim=(times[0], times[-1]))
    axis.legend(fontsize=8)


def draw_well(axis, t: float) -> None:
    """The potential at one time, with balls at its minima."""
    u, minima = potential(t), DATA.minima(float(SCHEDULE.alpha_bar(t)))[:, 0]
    axis.plot(X, u, color="tab:blue")
    axis.plot(minima, np.interp(minima, X, u), "o", color="tab:red")
    axis.set(title=f"t = {t:.0f}", xlabel="x", ylim=(-0.15, 2), yticks=[])


def animate(path: Path, times: np.ndarray) -> None:
    """A GIF of the well from noise to data."""
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


def main(out: Path) -> None:
    noise_rng, forward_rng, backward_rng = jax.random.split(jax.random.key(0), 3)
    noise = jax.random.normal(noise_rng, (100,))
    down, late = np.arange(T - 1, -1, -1), np.arange(400, -1, -1)
    forward = np.asarray(forward_paths(forward_rng, jnp.where(jnp.arange(100) % 2, 1.0, -1.0)))
    backward = np.asarray(backward_paths(backward_rng, noise, down))
    late_backward = np.asarray(backward_paths(backward_rng, noise, late))
    with plots.panels(out / "paths.png", (12, 3.6), 1, 3, sharey=True, layout="constrained") as axes:
        draw_paths(axes[0, 0], np.arange(-1, T), forward, "forward: data to noise")
        draw_paths(axes[0, 1], np.append(down, -1), backward, "backward: noise to data")
        draw_paths(axes[0, 2], np.append(late, -1), late_backward, "backward, with a late start at 400")

    times = np.concatenate([np.arange(999, 330, -20), np.arange(330, 250, -2), np.arange(250, -1, -10)])
    stable = branches(times)
    starts = np.arange(50, 1000, 50)
    errors = {sampler: few_steps(sampler, 5, starts) for sampler in ("ddpm", "ddim")}
    with plots.panels(out / "bifurcation.png", (10, 3.6), 1, 2, layout="constrained") as axes:
        draw_bifurcation(axes[0, 0], times, stable)
        for sampler, error in errors.items():
            axes[0, 1].plot(starts, error, "o-", markersize=3, label=f"{sampler}, 5 steps")
        axes[0, 1].axvline(T_CRITICAL, color="0.3", linestyle="--", linewidth=1)
        axes[0, 1].set(title="distance of samples to data", xlabel="t of the late start", xlim=(999, 0))
        axes[0, 1].legend(fontsize=8)

    animate(out / "potential.gif", np.concatenate([np.arange(999, 450, -50), np.arange(450, 100, -10), [60] * 8]))
    files.write_npz(out / "paths.npz", {"forward": forward, "backward": backward, "late_backward": late_backward})
    files.write_npz(out / "bifurcation.npz", {"t": times, "stable": stable, "t_start": starts, **errors})
    [alpha_bar] = DATA.splitting_alpha_bars()
    facts = {"theta_c": float(np.sqrt(alpha_bar)), "t_c": T_CRITICAL}
    files.write_json(out / "critical.json", facts | {"s_c": float(continuous_times(alpha_bar, SCHEDULE))})
    print(f"theta_c = {np.sqrt(alpha_bar):.10f}, found by bisection; (sqrt(2) - 1)^(1/2) = {(2**0.5 - 1) ** 0.5:.10f}")
    print(f"t_c = {T_CRITICAL:.1f}; pictures, animation and numbers: {out}")


if __name__ == "__main__":
    main(Path(__file__).parent.parent / "results/one_dimensional")
