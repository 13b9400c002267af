"""The DDPM loss, the optimiser, the train state and one train step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

import datasets
from core.diffusion import Denoiser
from core.parallel import replicate, split
from core.rng import key_for
from core.shapes import Images, Keys, Pixels
from models import Params, create_model, make_denoiser, make_schedule


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training updates.

    Attributes:
      step: the number of updates so far, int32.
      params: the weights.
      ema: the exponential moving average of the weights, which evaluation and sampling use.
      opt_state: the state of the optimiser of `make_optimizer`.
    """

    step: Any  # a scalar array, or whatever jax.tree.map makes of it
    params: Params
    ema: Params
    opt_state: optax.OptState


Metrics = dict[str, Float[Array, ""]]
"""The loss, the learning rate, and the gradient norm before clipping of one step."""


def learning_rate(config: ConfigDict) -> optax.Schedule:
    """The schedule of the learning rate.

    After a linear warm-up from 0 in optim.warmup steps, it is constant, or a cosine that reaches 0 at training.n_iters.
    """
    optim = config.optim
    decay_steps = max(config.training.n_iters - optim.warmup, 1)
    after_warmup = {
        "constant": optax.constant_schedule(optim.lr),
        "cosine": optax.cosine_decay_schedule(optim.lr, decay_steps),
    }
    warmup = optax.linear_schedule(0.0, optim.lr, optim.warmup)
    return optax.join_schedules([warmup, after_warmup[optim.schedule]], [optim.warmup])


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Makes Adam or Muon, with clipping of the gradients and weight decay.

    Weight decay is L2 regularisation: it is added to the gradient, as in torch.optim.Adam and in the paper's code.
    """
    optim = config.optim
    scale_by_optimizer = {"Adam": optax.scale_by_adam, "Muon": _scale_by_muon}[optim.optimizer]
    return optax.chain(
        optax.clip_by_global_norm(optim.grad_clip),
        optax.add_decayed_weights(optim.weight_decay) if optim.weight_decay else optax.identity(),
        scale_by_optimizer(b1=optim.beta1, eps=optim.eps),
        optax.scale_by_learning_rate(learning_rate(config)),
    )


def _scale_by_muon(b1: float, eps: float) -> optax.GradientTransformation:
    """Applies Muon (Jordan et al. 2024) to kernels of dense and convolutional layers, and Adam to other parameters.

    Both use Nesterov momentum: Adam with decay b1, Muon with optax's default of 0.95. The momentum of a kernel is
    reshaped to a matrix (inputs x outputs) and orthogonalised. It is then scaled to a root mean square of 0.2, the size
    of Adam's steps (Liu et al. 2025, arXiv 2502.16982), so one learning rate fits both.
    """

    def as_matrix(kernel):
        inputs = tuple(range(kernel.ndim - 1))
        return optax.contrib.MuonDimensionNumbers(inputs, kernel.ndim - 1) if inputs else None

    return optax.contrib.muon(
        -1.0,  # the learning rate: optax's Muon negates it, and `scale_by_learning_rate` negates again
        adam_b1=b1,
        eps=eps,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(as_matrix, params),
    )


def create_state(config: ConfigDict) -> tuple[nnx.GraphDef, TrainState]:
    """The network and the train state before the first step, determined by config.seed."""
    graphdef, params = create_model(config, key_for(config.seed, "init"))
    ema = _copy(params)  # separate buffers, because the train step donates both params and ema
    return graphdef, state_of(config, 0, params, ema=ema)


@jax.jit
def _copy(params: Params) -> Params:
    return jax.tree.map(jnp.copy, params)


def state_of(config: ConfigDict, step: int, params: Params, ema: Params) -> TrainState:
    """A train state with these weights and a new optimiser state, whose learning rate begins with the warm-up."""
    opt_state = jax.jit(make_optimizer(config).init)(params)  # jit compiles one program, not one for each shape
    return TrainState(jnp.asarray(step, jnp.int32), params=params, ema=ema, opt_state=opt_state)


def place(config: ConfigDict, state: TrainState) -> TrainState:
    """Replicates the state on all devices, but splits optimiser state and EMA over them if training.shard_state."""
    share = split if config.training.shard_state else replicate
    return TrainState(
        replicate(state.step),
        params=replicate(state.params),
        ema=share(state.ema),
        opt_state=share(state.opt_state),
    )


def ddpm_loss(denoiser: Denoiser, x0: Images, t: Int[Array, "batch"], noise: Images) -> Float[Array, "batch"]:
    """The mean squared error of the noise predicted at x_t, per image (Ho et al. 2020, equation 14)."""
    errors = denoiser.eps(denoiser.schedule.diffuse(x0, t, noise), t) - noise
    return jnp.mean(errors**2, axis=tuple(range(1, x0.ndim)))


def make_train_step(
    config: ConfigDict, graphdef: nnx.GraphDef
) -> Callable[[TrainState, Pixels], tuple[TrainState, Metrics]]:
    """Returns a jitted function that updates a train state with one batch of pixels. It donates the state passed to it.

    Its randomness depends on config.seed and state.step only, so a resumed run repeats lost steps exactly.
    """
    schedule = make_schedule(config)
    optimizer = make_optimizer(config)
    lr = learning_rate(config)

    def train_step(state: TrainState, images: Pixels) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(key_for(config.seed, "train"), state.step)
        t_rng, noise_rng, dropout_rng, dequantization_rng = jax.random.split(rng, 4)
        if config.data.uniform_dequantization:
            images = images + jax.random.uniform(dequantization_rng, images.shape, minval=-0.5, maxval=0.5)
        x0 = datasets.to_network_range(images, config.data.centered)
        t = jax.random.randint(t_rng, x0.shape[:1], 0, schedule.num_timesteps)
        noise = jax.random.normal(noise_rng, x0.shape, x0.dtype)

        def loss_fn(params):
            denoiser = make_denoiser(config, graphdef, params, dropout_key=dropout_rng)
            errors = ddpm_loss(denoiser, x0, t=t, noise=noise)
            return jnp.mean(errors * schedule.alpha_bar(t) ** -config.training.weighting)

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        decay = jnp.minimum(config.model.ema_rate, (1 + step) / (10 + step))
        ema = optax.incremental_update(params, state.ema, 1 - decay)
        metrics = {
            "loss": loss,
            "learning_rate": lr(state.opt_state[-1].count),
            "gradient_norm": optax.tree.norm(grads),
        }
        return place(config, TrainState(step, params=params, ema=ema, opt_state=opt_state)), metrics

    return jax.jit(train_step, donate_argnums=0)


@functools.partial(jax.jit, static_argnames="centered")
def eval_loss(denoiser: Denoiser, images: Pixels, keys: Keys, centered: bool) -> Float[Array, "batch"]:
    """The loss of each image without dropout. The t and the noise of an image are drawn from its key."""

    def draw(key, x0):
        t_rng, noise_rng = jax.random.split(key)
        t = jax.random.randint(t_rng, (), 0, denoiser.schedule.num_timesteps)
        return t, jax.random.normal(noise_rng, x0.shape)

    x0 = datasets.to_network_range(images, centered)
    t, noise = jax.vmap(draw)(keys, x0)
    return ddpm_loss(denoiser, x0, t=t, noise=noise)
