"""The denoiser: a network with its noise schedule, on the canonical variance-preserving path (`core.schedules`)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from core.conventions import CONVENTIONS, LEAST_SIGMA, PREDICTIONS, Convention, Moment, Seen
from core.schedules import NoiseSchedule as NoiseSchedule  # public here
from core.schedules import per_image as per_image
from core.shapes import Images, Labels

Network = Callable[[jax.Array, jax.Array], jax.Array]
"""A prediction for images at times of shape [batch], of the images' shape."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Denoiser:
    """A network with its noise schedule: the interface of samplers, late start, likelihood and analysis.

    Callers see one canonical path, x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) noise, whatever the network was trained on:
    x = a x_0 + s noise divided by sqrt(a^2 + s^2) lies on it, at ab = a^2 / (a^2 + s^2).
    It is a pytree, so that a jitted function takes it as an argument and compiles once for all weights.

    Attributes:
      network: called as network(x, time) with a time of shape [batch], or network(x, time, labels). A plain function is
        wrapped in `jax.tree_util.Partial`, which makes it a pytree without leaves.
      schedule: the noise schedule of t.
      prediction: what the network returns, one of PREDICTIONS.
      own: the network's own scaling of x and name of the time.
    """

    network: Network
    schedule: NoiseSchedule
    prediction: str = dataclasses.field(default="eps", metadata={"static": True})
    own: Convention = dataclasses.field(default=Convention(), metadata={"static": True})

    def __post_init__(self) -> None:
        if callable(self.network) and not isinstance(self.network, jax.tree_util.Partial):
            object.__setattr__(self, "network", jax.tree_util.Partial(self.network))

    def astype(self, dtype: jnp.dtype) -> "Denoiser":
        """The same with a schedule whose tables have this dtype."""
        return dataclasses.replace(self, schedule=self.schedule.astype(dtype))

    def predictions(self, x_t: Images, t: ArrayLike, labels: Labels | None = None) -> tuple[Images, Images]:
        """(x_0, noise) predicted in x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) noise.

        t is real, a scalar or one per image, from -1 to T - 1. labels are for networks with classes.
        """
        schedule = self.schedule
        sigma = jnp.maximum(schedule.noise_ratio(t), LEAST_SIGMA)
        moment = Moment(jnp.asarray(t), schedule.signal(t), schedule.sigma(t), sigma)
        return self._predictions(x_t, moment, labels)

    def eps(self, x_t: Images, t: ArrayLike, labels: Labels | None = None) -> Images:
        """The predicted noise in x_t; arguments as for `predictions`."""
        return self.predictions(x_t, t, labels)[1]

    def x0(self, x_t: Images, t: ArrayLike, labels: Labels | None = None) -> Images:
        """The predicted clean image at x_t; arguments as for `predictions`."""
        return self.predictions(x_t, t, labels)[0]

    def denoise(self, x: Images, sigma: ArrayLike, labels: Labels | None = None) -> Images:
        """E[x_0 | x] for x = x_0 + sigma noise: D(x; sigma) of Karras et al. (2022, arXiv 2206.00364), section 2.

        sigma is positive, a scalar or one per image. x divided by sqrt(1 + sigma^2) lies on the variance-preserving
        path at alpha_bar = 1 / (1 + sigma^2). A network of discrete times is evaluated at the t of that alpha_bar, or
        at the nearest end of the schedule where the schedule does not reach it.
        """
        sigma = jnp.asarray(sigma, x.dtype)
        signal = jax.lax.rsqrt(1 + sigma**2)
        moment = Moment(self.schedule.time_at(-jnp.log(sigma)), signal, sigma * signal, sigma)
        return self._predictions(per_image(signal, x) * x, moment, labels)[0]

    def output(self, x: Images, t: ArrayLike, labels: Labels | None = None) -> Images:
        """What the network itself returns for its own input x at its own time t, without any conversion."""
        times = jnp.broadcast_to(jnp.asarray(t, x.dtype), (len(x),))
        return self.network(x, times) if labels is None else self.network(x, times, labels)

    def of_classes(self, labels: Labels, guidance: ArrayLike = 1.0, null_class: int | None = None) -> "Denoiser":
        """The denoiser of images of these classes, one label for each image of every batch that it is given.

        guidance: w of classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598, with w = 1 for none): the
          output is that without a class, plus w times the difference that the class makes.
        null_class: the label without a class. Without it the denoiser is not guided.
        """
        if null_class is None:
            network = jax.tree_util.Partial(_of_classes, self.network, labels)
        else:
            network = jax.tree_util.Partial(_guided, self.network, labels, jnp.full_like(labels, null_class), guidance)
        return dataclasses.replace(self, network=network)

    def _predictions(self, x_t: Images, at: Moment, labels: Labels | None) -> tuple[Images, Images]:
        units = CONVENTIONS[self.own.name]
        signal = per_image(at.signal, x_t)
        noise = per_image(at.noise, x_t)
        scale = units.scale(self.own, signal, noise)
        y = scale * x_t
        output = self.output(y, units.time(self.own, self.schedule, at), labels)
        output = output[..., : x_t.shape[-1]]  # further channels are a learned variance
        return PREDICTIONS[self.prediction](Seen(y, scale * signal, scale * noise, self.own.sigma_data), output)


def _of_classes(network: Network, labels: Labels, x: Images, t: jax.Array) -> Images:
    return network(x, t, labels)


def _guided(network: Network, labels: Labels, null: Labels, weight: ArrayLike, x: Images, t: jax.Array) -> Images:
    """Both predictions are one network evaluation of twice the batch size."""
    outputs = network(jnp.concatenate([x, x]), jnp.concatenate([t, t]), jnp.concatenate([labels, null]))
    given, free = jnp.split(outputs, 2)
    return free + jnp.asarray(weight, x.dtype) * (given - free)
