"""Networks by name, and the bridge from a network object to pure functions of its parameters."""

import jax
from flax import nnx
from ml_collections import ConfigDict

from models.ddpm import DDPM

MODELS = {"ddpm": DDPM}

Params = nnx.State


def create_model(config: ConfigDict, rng: jax.Array) -> tuple[nnx.GraphDef, Params]:
    """The network of config.model as a static definition and its parameters."""
    model = MODELS[config.model.name](config, rngs=nnx.Rngs(params=rng))
    return nnx.split(model, nnx.Param)


def apply_model(graphdef: nnx.GraphDef, params: Params, x: jax.Array, t: jax.Array, dropout_key=None) -> jax.Array:
    """eps(x [B,H,W,C], t [B]); dropout is on where a key is given."""
    rngs = None if dropout_key is None else nnx.Rngs(dropout=dropout_key)
    return nnx.merge(graphdef, params)(x, t, rngs)
