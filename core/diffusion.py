"""The denoiser: a network with its noise schedule, on the canonical variance-preserving path (`core.schedules`)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from core.conventions import CONVENTIONS, LEAST_SIGMA, PREDICTIONS, Convention, NetworkInput, NoiseLevel
from core.schedules import NoiseSchedule as NoiseSchedule  # public here
from core.schedules import per_image as per_image
from core.shapes import Images, Labels

Network = Callable[[jax.Array, jax.Array], jax.Array]
"""Maps (x, time) to a prediction of the shape of x; the time has shape [batch]."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Denoiser:
    """A network with its noise schedule: the interface of samplers, late start, likelihood and analysis.

    Callers see one canonical path, x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) noise, whatever the network was trained on:
    if x = a x_0 + s noise, then x / sqrt(a^2 + s^2) lies on this path, at ab = a^2 / (a^2 + s^2).
    A Denoiser is a pytree. So a jitted function can take it as an argument, and is not compiled again for other
    weights.

    Attributes:
      network: called as network(x, time) with a time of shape [batch], or network(x, time, labels). A plain function is
        wrapped in `jax.tree_util.Partial`, which makes it a pytree without leaves.
      schedule: the noise schedule of t.
      prediction: the quantity that the network returns, one of PREDICTIONS.
      own: how the network scales its input and encodes the noise level.
    """

    network: Network
    schedule: NoiseSchedule
    prediction: str = dataclasses.field(default="eps", metadata={"static": True})
    own: Convention = dataclasses.field(default=Convention(), metadata={"static": True})

    def __post_init__(self) -> None:
        if callable(self.network) and not isinstance(self.network, jax.tree_util.Partial):
            object.__setattr__(self, "network", jax.tree_util.Partial(self.network))

    def astype(self, dtype: jnp.dtype) -> "Denoiser":
        """The same denoiser with a schedule whose tables have this dtype."""
        return dataclasses.replace(self, schedule=self.schedule.astype(dtype))

    def predictions(self, x_t: Images, t: ArrayLike, labels: Labels | None = None) -> tuple[Images, Images]:
        """The predicted (x_0, noise) in x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) noise.

        t is real, a scalar or one value per image, from -1 to T - 1. labels are for networks with classes.
        """
        schedule = self.schedule
        sigma = jnp.maximum(schedule.noise_ratio(t), LEAST_SIGMA)
        level = NoiseLevel(jnp.asarray(t), schedule.signal(t), schedule.sigma(t), sigma)
        return self._predictions(x_t, level, labels)

    def eps(self, x_t: Images, t: ArrayLike, labels: Labels | None = None) -> Images:
        """The predicted noise in x_t; arguments as for `predictions`."""
        return self.predictions(x_t, t, labels)[1]

    def x0(self, x_t: Images, t: ArrayLike, labels: Labels | None = None) -> Images:
        """The predicted clean image at x_t; arguments as for `predictions`."""
        return self.predictions(x_t, t, labels)[0]

    def denoise(self, x: Images, sigma: ArrayLike, labels: Labels | None = None) -> Images:
        """The estimate of E[x_0 | x] for x = x_0 + sigma noise: D(x; sigma) of Karras et al. (2022), section 2.

        sigma is positive, a scalar or one per image. x divided by sqrt(1 + sigma^2) lies on the variance-preserving
        path at alpha_bar = 1 / (1 + sigma^2). A network whose input is t is evaluated at the t with this alpha_bar, or
        at the nearest end of the schedule if the schedule has no such t.
        """
        sigma = jnp.asarray(sigma, x.dtype)
        signal = jax.lax.rsqrt(1 + sigma**2)
        level = NoiseLevel(self.schedule.time_at(-jnp.log(sigma)), signal, sigma * signal, sigma)
        return self._predictions(per_image(signal, x) * x, level, labels)[0]

    def output(self, x: Images, t: ArrayLike, labels: Labels | None = None) -> Images:
        """The output of the network without any conversion; x and t must be scaled as the network expects them."""
        times = jnp.broadcast_to(jnp.asarray(t, x.dtype), (len(x),))
        return self.network(x, times) if labels is None else self.network(x, times, labels)

    def of_classes(self, labels: Labels, guidance: ArrayLike = 1.0, null_class: int | None = None) -> "Denoiser":
        """Returns the denoiser conditioned on classes: `labels` has one class for each image of a batch.

        guidance: the weight w of classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598). The output is
          output(no class) + w (output(class) - output(no class)), so w = 1 means no guidance.
        null_class: the label that means "no class". If None, the denoiser is not guided.
        """
        if null_class is None:
            network = jax.tree_util.Partial(_of_classes, self.network, labels)
        else:
            network = jax.tree_util.Partial(_guided, self.network, labels, jnp.full_like(labels, null_class), guidance)
        return dataclasses.replace(self, network=network)

    def _predictions(self, x_t: Images, at: NoiseLevel, labels: Labels | None) -> tuple[Images, Images]:
        units = CONVENTIONS[self.own.name]
        signal = per_image(at.signal, x_t)
        noise = per_image(at.noise, x_t)
        scale = units.scale(self.own, signal, noise)
        y = scale * x_t
        output = self.output(y, units.time(self.own, self.schedule, at), labels)
        output = output[..., : x_t.shape[-1]]  # further channels are a learned variance
        return PREDICTIONS[self.prediction](NetworkInput(y, scale * signal, scale * noise, self.own.sigma_data), output)


def _of_classes(network: Network, labels: Labels, x: Images, t: jax.Array) -> Images:
    return network(x, t, labels)


def _guided(network: Network, labels: Labels, null: Labels, weight: ArrayLike, x: Images, t: jax.Array) -> Images:
    """Returns the guided output. Both outputs come from one call of the network with twice the batch size."""
    outputs = network(jnp.concatenate([x, x]), jnp.concatenate([t, t]), jnp.concatenate([labels, null]))
    given, free = jnp.split(outputs, 2)
    return free + jnp.asarray(weight, x.dtype) * (given - free)
