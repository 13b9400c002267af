"""Creation of networks by name, and their predictions as pure functions of the parameters."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Real
from ml_collections import ConfigDict

from core.diffusion import Denoiser, NoiseSchedule
from core.shapes import Images, RandomKey
from models.ddpm import DDPM

MODELS = {"ddpm": DDPM}

Params = nnx.State


def make_schedule(config: ConfigDict) -> NoiseSchedule:
    """The noise schedule that the network of config.model is trained with."""
    model = config.model
    return NoiseSchedule.linear(
        beta_min=model.beta_min / model.num_scales,
        beta_max=model.beta_max / model.num_scales,
        num_timesteps=model.num_scales,
    )


def create_model(config: ConfigDict, rng: RandomKey) -> tuple[nnx.GraphDef, Params]:
    """The network of config.model: its static definition, and parameters initialised with the key `rng`."""
    return nnx.split(_build(config, rng), nnx.Param)


def abstract_params(config: ConfigDict) -> tuple[nnx.GraphDef, Params]:
    """The same as `create_model`, with shapes and dtypes in place of the parameters; computes nothing."""
    return nnx.split(nnx.eval_shape(lambda: _build(config, jax.random.key(0))), nnx.Param)


def _build(config: ConfigDict, rng: RandomKey) -> nnx.Module:
    return MODELS[config.model.name](config, rngs=nnx.Rngs(params=rng))


def apply_model(
    graphdef: nnx.GraphDef,
    params: Params,
    x: Images,
    t: Real[Array, "batch"],
    dropout_key: RandomKey | None = None,
) -> Images:
    """The network's output for x at times t: eps or v, see config.model.prediction.

    dropout_key: applies dropout with this key; None switches dropout off.

    If config.model.dtype is bfloat16, the network computes with params and x rounded to bfloat16. The parameters, their
    gradients and the output keep their own dtype.
    """
    rngs = None if dropout_key is None else nnx.Rngs(dropout=dropout_key)
    network = nnx.merge(graphdef, params)
    if network.dtype == jnp.float32:  # no conversion, so that float64 stays float64
        return network(x, t, rngs)
    rounded_params, rounded_x = jax.tree.map(lambda leaf: leaf.astype(network.dtype), (params, x))
    return nnx.merge(graphdef, rounded_params)(rounded_x, t, rngs).astype(x.dtype)


def make_denoiser(
    config: ConfigDict, graphdef: nnx.GraphDef, params: Params, dropout_key: RandomKey | None = None
) -> Denoiser:
    """The network of config.model with these parameters, and its noise schedule.

    dropout_key: as for `apply_model`.
    """
    network = jax.tree_util.Partial(apply_model, graphdef, params, dropout_key=dropout_key)
    return Denoiser(network, make_schedule(config), config.model.prediction)
