"""The noise schedule and the forward process x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) noise (Ho et al. 2020)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from core.shapes import AnyArray, Images

Network = Callable[[jax.Array, jax.Array], jax.Array]
"""A prediction for x_t (Images) at t of shape [batch], of the shape of x_t. score = -eps / sqrt(1 - ab_t)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """A discrete noise schedule over t = 0 .. T-1; t = -1 is clean data, alpha_bar(-1) = 1.

    Attributes:
      betas: [T], the variance added at each step, in (0, 1).
      alpha_bars: [T], the products of 1 - beta up to t: the factor of the data's variance in x_t.
      log_alpha_bars: [T+1], log alpha_bar of t = -1 .. T-1. All functions of t read this table: near clean data the
        noise variance -expm1(log ab) is exact in float32, where 1 - ab would lose three digits.
    """

    betas: ArrayLike
    alpha_bars: ArrayLike
    log_alpha_bars: ArrayLike | None = None

    def __post_init__(self) -> None:
        if self.log_alpha_bars is None:
            logs = np.log(np.asarray(self.alpha_bars, np.float64))
            object.__setattr__(self, "log_alpha_bars", np.concatenate([[0.0], logs]))

    @classmethod
    def linear(cls, beta_min: float = 1e-4, beta_max: float = 0.02, num_timesteps: int = 1000) -> "NoiseSchedule":
        """Betas in equal steps from beta_min to beta_max (Ho et al. 2020, section 4)."""
        betas = np.linspace(beta_min, beta_max, num_timesteps, dtype=np.float64)
        logs = np.cumsum(np.log1p(-betas))
        return cls(betas, np.exp(logs), np.concatenate([[0.0], logs]))

    @property
    def num_timesteps(self) -> int:
        """T."""
        return self.betas.shape[0]

    def astype(self, dtype: jnp.dtype) -> "NoiseSchedule":
        """The same schedule with tables of this dtype, which is then the dtype of all functions of t."""
        return jax.tree.map(lambda table: jnp.asarray(table, dtype), self)

    def log_alpha_bar(self, t: ArrayLike) -> jax.Array:
        """log alpha_bar(t); t int or float of any shape, -1 <= t <= T-1, linear between integers."""
        table = jnp.asarray(self.log_alpha_bars)
        position = jnp.asarray(t, table.dtype) + 1
        below = jnp.clip(jnp.floor(position), 0, self.num_timesteps - 1).astype(jnp.int32)
        return table[below] + (position - below) * (table[below + 1] - table[below])

    def alpha_bar(self, t: ArrayLike) -> jax.Array:
        """The factor of the data's variance in x_t; t as for `log_alpha_bar`."""
        return jnp.exp(self.log_alpha_bar(t))

    def signal(self, t: ArrayLike) -> jax.Array:
        """sqrt(ab_t), the factor of x_0 in x_t."""
        return jnp.exp(0.5 * self.log_alpha_bar(t))

    def sigma(self, t: ArrayLike) -> jax.Array:
        """sqrt(1 - ab_t), the factor of the noise in x_t."""
        return jnp.sqrt(-jnp.expm1(self.log_alpha_bar(t)))

    def half_log_snr(self, t: ArrayLike) -> jax.Array:
        """lambda(t) = log(signal / sigma), the time variable of DPM-Solver; infinite at t = -1."""
        log_ab = self.log_alpha_bar(t)
        return 0.5 * (log_ab - jnp.log(-jnp.expm1(log_ab)))

    def time_at(self, half_log_snr: ArrayLike) -> jax.Array:
        """The real t at which lambda has this value: the inverse of `half_log_snr`, limited to -1 .. T-1."""
        table = jnp.asarray(self.log_alpha_bars)
        log_ab = jax.nn.log_sigmoid(2 * jnp.asarray(half_log_snr, table.dtype))
        return jnp.interp(log_ab, table[::-1], jnp.arange(self.num_timesteps - 1, -2, -1, table.dtype))

    def diffuse(self, x0: AnyArray, t: ArrayLike, noise: AnyArray) -> AnyArray:
        """x_t = signal(t) x_0 + sigma(t) noise; t is a scalar or one per image."""
        return per_image(self.signal(t), x0) * x0 + per_image(self.sigma(t), x0) * noise

    def predict_x0(self, x_t: AnyArray, t: ArrayLike, eps: AnyArray) -> AnyArray:
        """The x_0 with x_t = diffuse(x_0, t, eps)."""
        return (x_t - per_image(self.sigma(t), x_t) * eps) / per_image(self.signal(t), x_t)

    def eps_of_v(self, x_t: AnyArray, t: ArrayLike, v: AnyArray) -> AnyArray:
        """eps from v = signal eps - sigma x_0 (Salimans and Ho 2022, appendix D)."""
        return per_image(self.sigma(t), x_t) * x_t + per_image(self.signal(t), x_t) * v


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Denoiser:
    """A network with its noise schedule: the interface of samplers, late start, likelihood and analysis.

    It is a pytree, so that a jitted function takes it as an argument and compiles once for all weights.

    Attributes:
      network: called as network(x_t, t) with t of shape [batch], or network(x_t, t, labels). A plain function is
        wrapped in `jax.tree_util.Partial`, which makes it a pytree without leaves.
      schedule: the noise schedule of t.
      prediction: what the network returns, one of PREDICTIONS.
    """

    network: Network
    schedule: NoiseSchedule
    prediction: str = dataclasses.field(default="eps", metadata={"static": True})

    def __post_init__(self) -> None:
        if callable(self.network) and not isinstance(self.network, jax.tree_util.Partial):
            object.__setattr__(self, "network", jax.tree_util.Partial(self.network))

    def astype(self, dtype: jnp.dtype) -> "Denoiser":
        """The same with a schedule whose tables have this dtype."""
        return dataclasses.replace(self, schedule=self.schedule.astype(dtype))

    def eps(self, x_t: Images, t: ArrayLike, labels: Array | None = None) -> Images:
        """The predicted noise in x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) noise.

        t is real, a scalar or one per image, from -1 to T - 1. labels are passed on to a class-conditional network.
        """
        return PREDICTIONS[self.prediction](self.schedule, x_t, t, self.output(x_t, t, labels))

    def x0(self, x_t: Images, t: ArrayLike, labels: Array | None = None) -> Images:
        """The predicted clean image at x_t."""
        return self.schedule.predict_x0(x_t, t, self.eps(x_t, t, labels))

    def denoise(self, x: Images, sigma: ArrayLike, labels: Array | None = None) -> Images:
        """E[x_0 | x] for x = x_0 + sigma noise: D(x; sigma) of Karras et al. (2022, arXiv 2206.00364), section 2.

        sigma is positive, a scalar or one per image. x divided by sqrt(1 + sigma^2) lies on the variance-preserving
        path at alpha_bar = 1 / (1 + sigma^2). The network is evaluated at the t of that alpha_bar, or at the nearest
        end of the schedule where the schedule does not reach it.
        """
        sigma = jnp.asarray(sigma, x.dtype)
        t = self.schedule.time_at(-jnp.log(sigma))
        x_t = x / per_image(jnp.sqrt(1 + sigma**2), x)
        return x - per_image(sigma, x) * self.eps(x_t, t, labels)

    def output(self, x: Images, t: ArrayLike, labels: Array | None = None) -> Images:
        """What the network itself returns at x and t."""
        times = jnp.broadcast_to(jnp.asarray(t, x.dtype), (len(x),))
        return self.network(x, times) if labels is None else self.network(x, times, labels)


# From a network's output to the noise, by config.model.prediction.
PREDICTIONS = {"eps": lambda schedule, x_t, t, eps: eps, "v": NoiseSchedule.eps_of_v}


def per_image(value: ArrayLike, images: AnyArray) -> AnyArray:
    """A scalar, or one value per image, in the dtype of images [batch, ...] and shaped to broadcast against them."""
    value = jnp.asarray(value, images.dtype)
    return value.reshape(value.shape + (1,) * (images.ndim - value.ndim)) if value.ndim else value
