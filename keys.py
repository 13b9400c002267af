"""Randomness: one key per purpose, all from config.seed."""

import jax

PURPOSES = ("init", "train", "eval_loss", "noise", "sampler", "likelihood", "analysis")


def key_for(seed: int, purpose: str) -> jax.Array:
    """The key of one of PURPOSES; no two of them share a stream."""
    return jax.random.fold_in(jax.random.key(seed), PURPOSES.index(purpose))
