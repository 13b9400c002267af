"""The DDPM loss, the optimiser, the train state and one train step."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from ml_collections import ConfigDict

import datasets
from core.diffusion import EpsFn, NoiseSchedule
from core.parallel import replicate, split
from core.rng import key_for
from models import Params, apply_model, create_model


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    step: jax.Array  # int32, updates made so far
    params: Params
    ema: Params  # the average that sampling uses
    opt_state: optax.OptState


Metrics = dict[str, jax.Array]


def learning_rate(config: ConfigDict) -> optax.Schedule:
    """Linear warm-up from 0, then constant, or a cosine that reaches 0 at n_iters."""
    optim, steps = config.optim, config.training.n_iters
    after = {
        "constant": optax.constant_schedule(optim.lr),
        "cosine": optax.cosine_decay_schedule(optim.lr, max(steps - optim.warmup, 1)),
    }[optim.schedule]
    return optax.join_schedules([optax.linear_schedule(0.0, optim.lr, optim.warmup), after], [optim.warmup])


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Clipped Adam or Muon; weight decay joins the gradient, as in the paper's code (torch.optim.Adam)."""
    optim = config.optim
    directions = {"Adam": optax.scale_by_adam, "Muon": _scale_by_muon}[optim.optimizer]
    return optax.chain(
        optax.clip_by_global_norm(optim.grad_clip),
        optax.add_decayed_weights(optim.weight_decay) if optim.weight_decay else optax.identity(),
        directions(b1=optim.beta1, eps=optim.eps),
        optax.scale_by_learning_rate(learning_rate(config)),
    )


def _scale_by_muon(b1: float, eps: float) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for kernels of products and convolutions, Adam for all other parameters.

    Both with Nesterov's momentum. A kernel's, as a matrix from inputs to outputs, is made orthogonal and scaled to the
    size of Adam's steps (root mean square 0.2; Liu et al. 2025, arXiv 2502.16982), so that one learning rate fits both.
    """

    def as_matrix(kernel):
        inputs = tuple(range(kernel.ndim - 1))
        return optax.contrib.MuonDimensionNumbers(inputs, kernel.ndim - 1) if inputs else None

    return optax.contrib.muon(
        -1.0,  # since the learning rate that follows brings the sign
        adam_b1=b1,
        eps=eps,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(as_matrix, params),
    )


def create_state(config: ConfigDict) -> tuple[nnx.GraphDef, TrainState]:
    """The network and its state before the first step, a function of config.seed."""
    graphdef, params = create_model(config, key_for(config.seed, "init"))
    ema = jax.tree.map(jnp.copy, params)  # a buffer of its own, since the train step is donated both
    return graphdef, state_of(config, 0, params, ema)


def state_of(config: ConfigDict, step: int, params: Params, ema: Params) -> TrainState:
    """Given weights with a fresh optimiser, whose warm-up starts anew."""
    return TrainState(jnp.asarray(step, jnp.int32), params, ema, make_optimizer(config).init(params))


def place(config: ConfigDict, state: TrainState) -> TrainState:
    """Copies on every device; with training.shard_state the optimiser's state and the EMA are split over them."""
    share = split if config.training.shard_state else replicate
    return TrainState(replicate(state.step), replicate(state.params), share(state.ema), share(state.opt_state))


def ddpm_loss(predict: EpsFn, schedule: NoiseSchedule, x0: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
    """Mean squared error of predict(x_t, t) on the noise, [B] for x0 [B, ...] and t [B]: Ho et al. (2020), eq. 14."""
    errors = predict(schedule.diffuse(x0, t, noise), t.astype(x0.dtype)) - noise
    return jnp.mean(errors**2, axis=tuple(range(1, x0.ndim)))


def make_train_step(
    config: ConfigDict, graphdef: nnx.GraphDef, schedule: NoiseSchedule
) -> Callable[[TrainState, jax.Array], tuple[TrainState, Metrics]]:
    """One jitted update from uint8 images [B,H,W,C]; the state passed in is donated.

    Randomness is a function of (config.seed, state.step), so that a resumed run repeats what was lost.
    """
    optimizer, lr = make_optimizer(config), learning_rate(config)

    def train_step(state: TrainState, images: jax.Array) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(key_for(config.seed, "train"), state.step)
        t_rng, noise_rng, dropout_rng, dequantization_rng = jax.random.split(rng, 4)
        if config.data.uniform_dequantization:
            images = images + jax.random.uniform(dequantization_rng, images.shape, minval=-0.5, maxval=0.5)
        x0 = datasets.to_network_range(images, config.data.centered)
        t = jax.random.randint(t_rng, x0.shape[:1], 0, schedule.num_timesteps)
        noise = jax.random.normal(noise_rng, x0.shape, x0.dtype)

        def loss_fn(params):
            predict = functools.partial(apply_model, graphdef, params, dropout_key=dropout_rng)
            errors = ddpm_loss(predict, schedule, x0, t, noise)
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
        return place(config, TrainState(step, params, ema, opt_state)), metrics

    return jax.jit(train_step, donate_argnums=0)


@functools.partial(jax.jit, static_argnames="centered")
def eval_loss(eps_fn: EpsFn, schedule: NoiseSchedule, images: jax.Array, keys: jax.Array, centered: bool) -> jax.Array:
    """The loss of each of uint8 images [B,H,W,C], [B], without dropout; each image's t and noise come from its key.

    eps_fn is a pytree, so that one compilation serves all weights.
    """

    def draw(key, x0):
        t_rng, noise_rng = jax.random.split(key)
        return jax.random.randint(t_rng, (), 0, schedule.num_timesteps), jax.random.normal(noise_rng, x0.shape)

    x0 = datasets.to_network_range(images, centered)
    return ddpm_loss(eps_fn, schedule, x0, *jax.vmap(draw)(keys, x0))
