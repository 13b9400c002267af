"""Noise schedules of the forward process x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) noise (Ho et al. 2020).

Every Gaussian path x = a x_0 + s noise, divided by sqrt(a^2 + s^2), lies on this variance-preserving path, at
ab = a^2 / (a^2 + s^2). So every schedule is a table of ab over t = 0 .. T-1, which is interpolated at real t.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from core.shapes import AnyArray

LEAST_ALPHA_BAR = 1e-11


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """A discrete noise schedule over t = 0 .. T-1; t = -1 is clean data, alpha_bar(-1) = 1.

    Attributes:
      betas: [T], the variance added at each step, in (0, 1).
      alpha_bars: [T], the products of 1 - beta up to t: the factor of the data's variance in x_t.
      log_alpha_bars: [T+1], log alpha_bar of t = -1 .. T-1. All functions of t read this table, because near clean data
        the noise variance -expm1(log ab) is exact in float32, while 1 - ab would lose three digits.
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
        return cls.from_betas(np.linspace(beta_min, beta_max, num_timesteps))

    @classmethod
    def from_betas(cls, betas: ArrayLike) -> "NoiseSchedule":
        """The schedule of these betas [T]."""
        schedule = cls.from_logs(np.cumsum(np.log1p(-np.asarray(betas, np.float64))))
        return dataclasses.replace(schedule, betas=betas)

    @classmethod
    def in_single_precision(cls, betas: ArrayLike) -> "NoiseSchedule":
        """The schedule of these betas [T], rounded as in diffusers (0.42), so that the tables are equal.

        1 - beta and alpha_bar are rounded to float32. The partial products are not rounded.
        """
        alphas = np.float32(1) - np.asarray(betas, np.float32)
        return cls.from_alpha_bars(np.cumprod(alphas, dtype=np.float64).astype(np.float32))

    @classmethod
    def from_alpha_bars(cls, alpha_bars: ArrayLike) -> "NoiseSchedule":
        """The schedule of these alpha_bars [T], descending. The last may be 0 (zero terminal SNR)."""
        with np.errstate(divide="ignore"):
            return cls.from_logs(np.log(np.asarray(alpha_bars, np.float64)))

    @classmethod
    def from_sigmas(cls, sigmas: ArrayLike) -> "NoiseSchedule":
        """The schedule of these ratios of noise to signal [T], ascending: alpha_bar = 1 / (1 + sigma^2)."""
        return cls.from_logs(-np.log1p(np.asarray(sigmas, np.float64) ** 2))

    @classmethod
    def from_logs(cls, logs: Float[np.ndarray, "T"]) -> "NoiseSchedule":
        """The schedule of these log alpha_bars, descending.

        The table `alpha_bars` is exact. Functions of t replace alpha_bars below LEAST_ALPHA_BAR by LEAST_ALPHA_BAR, so
        that quotients by the signal stay finite at zero terminal SNR.
        """
        logs = np.concatenate([[0.0], logs])
        with np.errstate(invalid="ignore"):
            betas = -np.expm1(np.diff(logs))
        return cls(betas, np.exp(logs[1:]), np.maximum(logs, np.log(LEAST_ALPHA_BAR)))

    @property
    def num_timesteps(self) -> int:
        """T, the number of times."""
        return self.betas.shape[0]

    def astype(self, dtype: jnp.dtype) -> "NoiseSchedule":
        """The same schedule with tables of this dtype. All functions of t then return this dtype."""
        return jax.tree.map(lambda table: jnp.asarray(table, dtype), self)

    def log_alpha_bar(self, t: ArrayLike) -> jax.Array:
        """log alpha_bar(t), linear between integers. t is int or float, of any shape, from -1 to T-1."""
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

    def noise_ratio(self, t: ArrayLike) -> jax.Array:
        """sigma(t) / signal(t): the sigma of Karras et al. (2022), 0 at t = -1."""
        return jnp.sqrt(jnp.expm1(-self.log_alpha_bar(t)))

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
        """The noised x_t = signal(t) x_0 + sigma(t) noise; t is a scalar or one value per image."""
        return per_image(self.signal(t), x0) * x0 + per_image(self.sigma(t), x0) * noise

    def predict_x0(self, x_t: AnyArray, t: ArrayLike, eps: AnyArray) -> AnyArray:
        """The x_0 with x_t = diffuse(x_0, t, eps)."""
        return (x_t - per_image(self.sigma(t), x_t) * eps) / per_image(self.signal(t), x_t)


def per_image(value: ArrayLike, images: AnyArray) -> AnyArray:
    """A scalar, or one value per image, in the dtype of images [batch, ...] and shaped to broadcast against them."""
    value = jnp.asarray(value, images.dtype)
    return value.reshape(value.shape + (1,) * (images.ndim - value.ndim)) if value.ndim else value


def rho_sigmas(sigma_min: float, sigma_max: float, n: int, rho: float = 7.0) -> Float[np.ndarray, "{n}"]:
    """Ascending sigma = noise / signal, in equal steps of sigma ** (1 / rho) (Karras et al. 2022, equation 5)."""
    return np.linspace(sigma_min ** (1 / rho), sigma_max ** (1 / rho), n) ** rho


Betas = Float[np.ndarray, "T"]


def linear_betas(first: float, last: float, num_timesteps: int, *, single: bool = False) -> Betas:
    """The schedule of Ho et al. (2020): equal steps in beta. single: round to float32 as torch.linspace does."""
    if not single:
        return np.linspace(first, last, num_timesteps)
    ends = np.float32(first), np.float32(last)
    step = np.float64((ends[1] - ends[0]) / np.float32(num_timesteps - 1))
    rising = ends[0] + step * np.arange(num_timesteps)
    falling = ends[1] - step * np.arange(num_timesteps)[::-1]
    return np.where(np.arange(num_timesteps) < num_timesteps // 2, rising, falling).astype(np.float32)


def scaled_linear_betas(first: float, last: float, num_timesteps: int, *, single: bool = False) -> Betas:
    """Stable Diffusion's schedule: equal steps in sqrt(beta). single: as for `linear_betas`."""
    return linear_betas(first**0.5, last**0.5, num_timesteps, single=single) ** 2


def sigmoid_betas(first: float, last: float, num_timesteps: int, *, single: bool = False) -> Betas:
    """Equal steps in the logit of (beta - first) / (last - first), from -6 to 6. single: as for `linear_betas`."""
    logits = linear_betas(-6, 6, num_timesteps, single=single)
    return 1 / (1 + np.exp(-logits)) * (last - first) + first


def cosine_betas(num_timesteps: int) -> Betas:
    """The cosine schedule of Nichol and Dhariwal (2021, arXiv 2102.09672), equation 17, with betas of at most 0.999.

    diffusers calls it squaredcos_cap_v2.
    """
    values = np.cos((np.arange(num_timesteps + 1) / num_timesteps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - values[1:] / values[:-1], 0.999)


def continuous(beta_min: float, beta_max: float, num_timesteps: int) -> NoiseSchedule:
    """The variance-preserving SDE of Song et al. (2021), whose beta is linear in u, at u = 1 / T, 2 / T, .., 1."""
    u = np.arange(1, num_timesteps + 1) / num_timesteps
    return NoiseSchedule.from_logs(-(beta_max - beta_min) * u**2 / 2 - beta_min * u)


def flow(num_timesteps: int) -> NoiseSchedule:
    """Rectified flow, x = (1 - u) x_0 + u noise (Liu et al. 2022, arXiv 2209.03003), at u = 1 / T, 2 / T, .., 1."""
    u = np.arange(1, num_timesteps + 1) / num_timesteps
    return NoiseSchedule.from_alpha_bars((1 - u) ** 2 / ((1 - u) ** 2 + u**2))


def zero_terminal_snr(schedule: NoiseSchedule) -> NoiseSchedule:
    """Shifts and scales sqrt(ab) so that its last value becomes 0 and its first value does not change.

    Lin et al. (2024, arXiv 2305.08891), algorithm 1.
    """
    signal = np.sqrt(np.asarray(schedule.alpha_bars, np.float64))
    return NoiseSchedule.from_alpha_bars(((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2)
