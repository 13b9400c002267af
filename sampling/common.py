"""What all samplers share: their signature, the intervals of a time grid, and noise that belongs to an image."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

EpsFn = Callable[[jax.Array, jax.Array], jax.Array]
"""The noise prediction eps(x [B,H,W,C], t) -> [B,H,W,C]; `sample` lets a sampler pass a scalar t."""


def intervals(timesteps: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """The ends of a grid's steps, ([n], [n]): from t to the next t, from the last to -1."""
    times = jnp.asarray(timesteps, dtype)
    return times, jnp.append(times[1:], jnp.asarray(-1, dtype))


def image_keys(rng: jax.Array, indices: jax.Array) -> jax.Array:
    """One key per image, [B], from its global index alone: no batch size or device count can change a sample."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(rng, indices)


def image_noise(keys: jax.Array, purpose: jax.Array | int, like: jax.Array) -> jax.Array:
    """Standard normal noise shaped like images [B, ...], image b's from keys[b] and the purpose (a step, say)."""

    def one(key):
        return jax.random.normal(jax.random.fold_in(key, purpose), like.shape[1:], like.dtype)

    return jax.vmap(one)(keys)
