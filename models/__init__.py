"""Creates networks by name, and applies them as pure functions of their parameters."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Real
from ml_collections import ConfigDict

from core import schedules
from core.conventions import Convention
from core.diffusion import Denoiser
from core.schedules import NoiseSchedule
from core.shapes import AnyArray, Images, Labels, RandomKey
from models.adm import ADM
from models.ddpm import DDPM
from models.songunet import SongUNet
from models.unet2d import UNet2D

MODELS = {"ddpm": DDPM, "songunet": SongUNet, "adm": ADM, "unet2d": UNet2D.of_config}

Params = nnx.State

# config.schedule.name: a function of (config.model, config.schedule) that makes the noise schedule.
SCHEDULES: dict[str, Callable[[ConfigDict, ConfigDict], NoiseSchedule]] = {
    "linear": lambda model, settings: _of_betas(schedules.linear_betas, model, settings),
    "scaled_linear": lambda model, settings: _of_betas(schedules.scaled_linear_betas, model, settings),
    "sigmoid": lambda model, settings: _of_betas(schedules.sigmoid_betas, model, settings),
    "cosine": lambda model, settings: _rounded(settings, schedules.cosine_betas(model.num_scales)),
    "table": lambda _, settings: NoiseSchedule.from_alpha_bars(settings.alpha_bars),
    "vp": lambda model, _: schedules.continuous(model.beta_min, model.beta_max, model.num_scales),
    "ve": lambda model, settings: NoiseSchedule.from_sigmas(
        np.geomspace(settings.sigma_min, settings.sigma_max, model.num_scales)
    ),
    "edm": lambda model, settings: NoiseSchedule.from_sigmas(
        schedules.rho_sigmas(settings.sigma_min, settings.sigma_max, model.num_scales)
    ),
    "flow": lambda model, _: schedules.flow(model.num_scales),
}


def make_schedule(config: ConfigDict) -> NoiseSchedule:
    """Makes the noise schedule of config.schedule, with model.num_scales times."""
    schedule = SCHEDULES[config.schedule.name](config.model, config.schedule)
    return schedules.zero_terminal_snr(schedule) if config.schedule.zero_snr else schedule


def _of_betas(betas: Callable[..., schedules.Betas], model: ConfigDict, settings: ConfigDict) -> NoiseSchedule:
    ends = model.beta_min / model.num_scales, model.beta_max / model.num_scales
    return _rounded(settings, betas(*ends, model.num_scales, single=settings.single_precision))


def _rounded(settings: ConfigDict, betas: schedules.Betas) -> NoiseSchedule:
    return (NoiseSchedule.in_single_precision if settings.single_precision else NoiseSchedule.from_betas)(betas)


def create_model(config: ConfigDict, rng: RandomKey) -> tuple[nnx.GraphDef, Params]:
    """Creates the network of config.model: its graphdef, and parameters initialised with the key `rng`."""
    return nnx.split(_build(config, rng), nnx.Param)


def abstract_params(config: ConfigDict) -> tuple[nnx.GraphDef, Params]:
    """Like `create_model`, but with shapes and dtypes in place of parameter values. Computes nothing."""
    return nnx.split(nnx.eval_shape(lambda: _build(config, jax.random.key(0))), nnx.Param)


def _build(config: ConfigDict, rng: RandomKey) -> nnx.Module:
    return MODELS[config.model.name](config, rngs=nnx.Rngs(params=rng))


def apply_model(
    graphdef: nnx.GraphDef,
    params: Params,
    x: Images,
    t: Real[Array, "batch"],
    labels: Labels | None = None,
    dropout_key: RandomKey | None = None,
    **inputs: AnyArray,
) -> Images:
    """Returns the network's output, which is the quantity that config.model.prediction names.

    x and t must be scaled as config.model.convention says.

    labels: only for networks with classes.
    dropout_key: the random key of dropout; None switches dropout off.
    inputs: further inputs of the network by name, such as `augment` of SongUNet.

    If config.model.dtype is bfloat16, the network computes with params and x rounded to bfloat16. The parameters and
    their gradients keep the dtype of params, and the output has the dtype of x.
    """
    rngs = None if dropout_key is None else nnx.Rngs(dropout=dropout_key)
    inputs |= {} if labels is None else {"labels": labels}
    network = nnx.merge(graphdef, params)
    if network.dtype == jnp.float32:  # no conversion, so that float64 stays float64
        return network(x, t, rngs, **inputs)
    rounded_params, rounded_x = jax.tree.map(lambda leaf: leaf.astype(network.dtype), (params, x))
    return nnx.merge(graphdef, rounded_params)(rounded_x, t, rngs, **inputs).astype(x.dtype)


def make_denoiser(
    config: ConfigDict, graphdef: nnx.GraphDef, params: Params, dropout_key: RandomKey | None = None
) -> Denoiser:
    """Combines the network of config.model, its parameters and its noise schedule into a Denoiser.

    dropout_key: as for `apply_model`.
    """
    model = config.model
    network = jax.tree_util.Partial(apply_model, graphdef, params, dropout_key=dropout_key)
    own = Convention(model.convention, model.sigma_data, model.beta_min, model.beta_max, model.num_scales)
    return Denoiser(network, make_schedule(config), model.prediction, own)
