"""Randomness: one key per purpose, all from config.seed."""

import jax

PURPOSES = ("init", "train", "eval_loss", "noise", "sampler", "likelihood", "analysis")


def key_for(seed: int, purpose: str) -> jax.Array:
    """The key of one of PURPOSES; no two of them share a stream."""
    return jax.random.fold_in(jax.random.key(seed), PURPOSES.index(purpose))


def image_keys(rng: jax.Array, indices: jax.Array) -> jax.Array:
    """One key per image, [B], from its global index alone: no batch size or device count can change a sample."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(rng, indices)


def image_noise(keys: jax.Array, purpose: jax.Array | int, like: jax.Array) -> jax.Array:
    """Standard normal noise shaped like images [B, ...], image b's from keys[b] and the purpose (a step, say)."""

    def one(key):
        return jax.random.normal(jax.random.fold_in(key, purpose), like.shape[1:], like.dtype)

    return jax.vmap(one)(keys)
