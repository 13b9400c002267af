"""The noise schedule and the forward process x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) noise (Ho et al. 2020)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

EpsFn = Callable[[jax.Array, jax.Array], jax.Array]
"""A noise prediction: x [B,H,W,C] and t [B] to eps [B,H,W,C]. score = -eps / sqrt(1 - ab_t)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """A discrete noise schedule over t = 0 .. T-1; t = -1 is clean data, alpha_bar(-1) = 1.

    Attributes:
      betas: [T], the variance added at each step, in (0, 1).
      alpha_bars: [T], the share of the data's variance that is left at t.
      log_alpha_bars: [T+1], log alpha_bar of t = -1 .. T-1. All functions of t read this table: in float32 the noise
        variance 1 - ab = -expm1(log ab) keeps every digit near clean data, where 1 - ab_0 = 1e-4 would lose three.
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
        return self.betas.shape[0]

    def astype(self, dtype: jnp.dtype) -> "NoiseSchedule":
        """The same with tables of this dtype, in which its functions of t then compute."""
        return jax.tree.map(lambda table: jnp.asarray(table, dtype), self)

    def log_alpha_bar(self, t: ArrayLike) -> jax.Array:
        """log alpha_bar(t); t int or float of any shape, -1 <= t <= T-1, linear between integers."""
        table = jnp.asarray(self.log_alpha_bars)
        position = jnp.asarray(t, table.dtype) + 1
        below = jnp.clip(jnp.floor(position), 0, self.num_timesteps - 1).astype(jnp.int32)
        return table[below] + (position - below) * (table[below + 1] - table[below])

    def alpha_bar(self, t: ArrayLike) -> jax.Array:
        return jnp.exp(self.log_alpha_bar(t))

    def signal(self, t: ArrayLike) -> jax.Array:
        """sqrt(ab_t), the factor of x_0 in x_t."""
        return jnp.exp(0.5 * self.log_alpha_bar(t))

    def sigma(self, t: ArrayLike) -> jax.Array:
        """sqrt(1 - ab_t), the factor of the noise in x_t."""
        return jnp.sqrt(-jnp.expm1(self.log_alpha_bar(t)))

    def half_log_snr(self, t: ArrayLike) -> jax.Array:
        """lambda(t) = log(signal / sigma), the time in which DPM-Solver and its kin step; infinite at t = -1."""
        log_ab = self.log_alpha_bar(t)
        return 0.5 * (log_ab - jnp.log(-jnp.expm1(log_ab)))

    def time_at(self, half_log_snr: ArrayLike) -> jax.Array:
        """The t, integer or between, at which lambda has this value: the inverse of `half_log_snr`."""
        table = jnp.asarray(self.log_alpha_bars)
        log_ab = jax.nn.log_sigmoid(2 * jnp.asarray(half_log_snr, table.dtype))
        return jnp.interp(log_ab, table[::-1], jnp.arange(self.num_timesteps - 1, -2, -1, table.dtype))

    def diffuse(self, x0: jax.Array, t: ArrayLike, noise: jax.Array) -> jax.Array:
        """x_t of x0 [B, ...]; t a scalar or [B]."""
        return per_image(self.signal(t), x0) * x0 + per_image(self.sigma(t), x0) * noise

    def predict_x0(self, x_t: jax.Array, t: ArrayLike, eps: jax.Array) -> jax.Array:
        """The x_0 that `diffuse` would have taken to x_t with the noise eps."""
        return (x_t - per_image(self.sigma(t), x_t) * eps) / per_image(self.signal(t), x_t)

    def eps_of_v(self, x_t: jax.Array, t: ArrayLike, v: jax.Array) -> jax.Array:
        """eps from v = signal eps - sigma x_0 (Salimans and Ho 2022, appendix D)."""
        return per_image(self.sigma(t), x_t) * x_t + per_image(self.signal(t), x_t) * v


def per_image(value: jax.Array, images: jax.Array) -> jax.Array:
    """A scalar or [B], in the dtype of images [B, ...] and shaped to broadcast against them."""
    value = jnp.asarray(value, images.dtype)
    return value.reshape(value.shape + (1,) * (images.ndim - value.ndim)) if value.ndim else value
