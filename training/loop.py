"""One training run: from the newest whole checkpoint to the last step, whatever ends it on the way."""

import collections
import contextlib
import functools
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from tqdm import tqdm

import datasets
import losses
from core import parallel, plots
from core.diffusion import EpsFn, NoiseSchedule
from core.errors import Stopped, UserError
from core.rng import key_for
from datasets import keyed_batches
from models import Params, make_eps_fn
from sampling.generate import generate, grid_of
from training import checkpoints
from training.log import MetricsWriter, Rate

REMEMBERED = 5  # how many losses are told when one is not finite


def run(
    config: ConfigDict, workdir: Path, schedule: NoiseSchedule, images: np.ndarray, held_out: np.ndarray | None
) -> int:
    """Trains to training.n_iters and returns the step from which it went on.

    images, held_out: uint8 [N, H, W, C]. Raises UserError where another process holds the workdir, its network is
    another, or a loss or gradient is not finite; Stopped after SIGTERM or SIGINT, when the state is saved.
    """
    training = config.training
    graphdef, state = losses.create_state(config)
    train_step = losses.make_train_step(config, graphdef, schedule)
    with checkpoints.only_writer(workdir), catching_signals() as signals:
        state = checkpoints.resume(config, workdir, losses.place(config, state))
        reached = int(state.step)
        with checkpoints.saving(config, workdir) as save, MetricsWriter(workdir, reached) as writer:
            if reached < training.n_iters:
                checkpoints.write_config(config, workdir)
            look = functools.partial(_look, config, workdir, schedule, graphdef, held_out, writer, reached, signals)
            look(reached, state.ema)  # in case that a signal cut it off
            batches = map(parallel.shard_batch, datasets.train_batches(images, config, reached))
            batch, recent, steps_per_second = next(batches), collections.deque(maxlen=REMEMBERED), Rate(reached)
            steps = range(reached + 1, training.n_iters + 1)
            for step in (progress := tqdm(steps, "train", training.n_iters, initial=reached, unit="step")):
                state, metrics = train_step(state, batch)
                batch = next(batches)  # while the device computes
                values = _finite(step, metrics, recent)  # waits: a step sent ahead could not be called back by a signal
                if _due(config, step, training.log_freq):
                    writer.write(step, values | {"images_per_second": steps_per_second(step) * training.batch_size})
                    progress.set_postfix(loss=f"{values['loss']:.4f}")
                look(step, state.ema)
                stop = _asked_to_stop(step, signals)
                if stop or _due(config, step, training.snapshot_freq, training.snapshot_freq_for_preemption):
                    save(state)
                if stop:
                    raise Stopped(step, *signals)
    return reached


def _due(config: ConfigDict, step: int, *frequencies: int) -> bool:
    """Whether what happens every so many steps (0: never) happens now; the last step is always one of them."""
    last = step == config.training.n_iters
    return step > 0 and any(frequency > 0 and (step % frequency == 0 or last) for frequency in frequencies)


def _finite(step: int, metrics: losses.Metrics, recent: collections.deque) -> dict[str, float]:
    """The metrics, once the device has them; remembers the loss. UserError where it or the gradient is not finite."""
    values = {name: float(value) for name, value in metrics.items()}
    loss, norm = values["loss"], values["gradient_norm"]
    if not np.isfinite([loss, norm]).all():
        before = f" after {', '.join(recent)}" if recent else ""
        raise UserError(
            f"step {step}: the loss is {loss}{before}, the gradient's norm {norm}: lower optim.lr and go on from "
            "the last checkpoint, which is whole, with the same --workdir"
        )
    recent.append(f"{loss:.4g}")
    return values


# Between steps


def _look(
    config: ConfigDict,
    workdir: Path,
    schedule: NoiseSchedule,
    graphdef: nnx.GraphDef,
    held_out: np.ndarray | None,
    writer: MetricsWriter,
    reached: int,
    signals: Sequence[int],
    step: int,
    ema: Params,
) -> None:
    """The loss on held-out images and a grid of samples, where they are due and not there; a signal cuts it off."""
    training, eps_fn = config.training, make_eps_fn(graphdef, parallel.replicate(ema))
    if _due(config, step, training.eval_freq) and not writer.holds(step, "eval_loss"):
        loss = mean_loss(config, eps_fn, schedule, held_out, signals)
        if not signals:
            writer.write(step, {"eval_loss": loss})
    path = workdir / f"samples/step_{step:07d}.png"
    there = step == reached and path.exists()  # a later step's is of an earlier training
    if training.snapshot_sampling and _due(config, step, training.snapshot_freq) and not (signals or there):
        size = training.sampling_size
        grid = grid_of(config, schedule, late=False)
        [(x0, count)] = generate(config, eps_fn, schedule, None, grid, datasets.image_shape(config), size, size)
        pixels = parallel.all_rows(datasets.to_uint8(x0, config.data.centered))[:count]
        plots.save_image(path, plots.image_grid(pixels))


def mean_loss(
    config: ConfigDict, eps_fn: EpsFn, schedule: NoiseSchedule, images: np.ndarray, signals: Sequence[int] = ()
) -> float:
    """The loss over a split, every image at the same time and with the same noise at every call.

    Means nothing once there is a signal.
    """
    rng, total = key_for(config.seed, "eval_loss"), 0.0
    for batch, keys, count in keyed_batches(images, parallel.round_up(config.eval.batch_size), rng):
        if signals:
            break
        losses_found = losses.eval_loss(eps_fn, schedule, batch, keys, config.data.centered)
        total += parallel.all_rows(losses_found)[:count].sum(dtype=np.float64)
    return total / len(images)


# Signals


@contextlib.contextmanager
def catching_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT in place of obeying them; the second of a kind is obeyed.

    Where there are several processes JAX takes SIGTERM and tells them all, so SIGINT is passed on as one.
    """
    received: list[int] = []

    def collect(number, _):
        received.append(number)
        signal.signal(number, previous[number])

    if threading.current_thread() is not threading.main_thread():  # only there does Python allow handlers
        handlers = {}
    elif jax.process_count() > 1:
        handlers = {signal.SIGINT: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}
    else:
        handlers = {signal.SIGTERM: collect, signal.SIGINT: collect}
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _asked_to_stop(step: int, signals: Sequence[int]) -> bool:
    """Whether all processes are to stop at this step; asked once at every step, without waiting."""
    return multihost_utils.reached_preemption_sync_point(step) if jax.process_count() > 1 else bool(signals)
