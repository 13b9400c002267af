"""Networks by name, and the bridge from a network object to pure functions of its parameters."""

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from core.diffusion import EpsFn, NoiseSchedule
from models.ddpm import DDPM, linear_betas

MODELS = {"ddpm": DDPM}

Params = nnx.State


def make_schedule(config: ConfigDict) -> NoiseSchedule:
    """The noise that the network of config.model is for."""
    return NoiseSchedule.linear(*linear_betas(config.model))


def create_model(config: ConfigDict, rng: jax.Array) -> tuple[nnx.GraphDef, Params]:
    """The network of config.model as a static definition and its parameters, a function of rng."""
    return nnx.split(_build(config, rng), nnx.Param)


def abstract_params(config: ConfigDict) -> tuple[nnx.GraphDef, Params]:
    """The same with shapes and types in place of the parameters; computes nothing."""
    return nnx.split(nnx.eval_shape(lambda: _build(config, jax.random.key(0))), nnx.Param)


def _build(config: ConfigDict, rng: jax.Array) -> nnx.Module:
    return MODELS[config.model.name](config, rngs=nnx.Rngs(params=rng))


def apply_model(graphdef: nnx.GraphDef, params: Params, x: jax.Array, t: jax.Array, dropout_key=None) -> jax.Array:
    """eps(x [B,H,W,C], t [B]); dropout is on where a key is given.

    Where config.model.dtype is bfloat16 the network sees params and x rounded to it; params, their gradients and eps
    keep the dtype they have.
    """
    rngs = None if dropout_key is None else nnx.Rngs(dropout=dropout_key)
    network = nnx.merge(graphdef, params)
    if network.dtype == jnp.float32:  # as it comes: float64 stays float64
        predicted = network(x, t, rngs)
    else:
        rounded_params, rounded_x = jax.tree.map(lambda leaf: leaf.astype(network.dtype), (params, x))
        predicted = nnx.merge(graphdef, rounded_params)(rounded_x, t, rngs).astype(x.dtype)
    return NoiseSchedule.linear(*network.v_betas).eps_of_v(x, t, predicted) if network.v_betas else predicted


def make_eps_fn(graphdef: nnx.GraphDef, params: Params) -> EpsFn:
    """A network as a callable pytree: jitted functions take it as an argument and compile once for all weights."""
    return jax.tree_util.Partial(apply_model, graphdef, params)
