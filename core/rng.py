"""Random keys: one per purpose, made from config.seed, and one per image, made from its global index."""

import jax
from jaxtyping import Array, Integer

from core.shapes import Images, Keys, RandomKey

PURPOSES = ("init", "train", "eval_loss", "noise", "sampler", "likelihood", "analysis")


def key_for(seed: int, purpose: str) -> RandomKey:
    """The key of one of PURPOSES. No two purposes share random numbers."""
    return jax.random.fold_in(jax.random.key(seed), PURPOSES.index(purpose))


def image_keys(rng: RandomKey, indices: Integer[Array, "batch"]) -> Keys:
    """One key per image. It depends only on the image's global index, so batch size and devices change no sample."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(rng, indices)


def image_noise(keys: Keys, purpose: Integer[Array, ""] | int, like: Images | jax.ShapeDtypeStruct) -> Images:
    """Standard normal noise of the shape and dtype of `like`. The noise of image b depends on keys[b] and purpose."""

    def one(key):
        return jax.random.normal(jax.random.fold_in(key, purpose), like.shape[1:], like.dtype)

    return jax.vmap(one)(keys)
