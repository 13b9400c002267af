"""The training loop: resumes, takes steps, logs, evaluates, saves checkpoints, and stops on a signal."""

import collections
import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import SupportsFloat

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from tqdm import tqdm

import datasets
import losses
from core import parallel, plots
from core.diffusion import Denoiser
from core.errors import Stopped, UserError
from core.rng import key_for
from core.shapes import HostPixels
from models import Params, make_denoiser
from sampling.generate import generate, grid_of
from training import checkpoints
from training.log import MetricsWriter, Rate

LOSSES_SHOWN = 5  # earlier losses in the message about a loss that is not finite
SAVING_SIGNALS = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP),  # sent by Ctrl-C, most schedulers, and a terminal that closes
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU),  # sent by SLURM, SGE, LSF and ulimit before the time is up
)


def run(config: ConfigDict, workdir: Path, images: HostPixels, held_out: HostPixels | None) -> int:
    """Trains to step training.n_iters from the newest whole checkpoint, and returns the step of that checkpoint (or 0).

    images: the training split. held_out: the images for the loss that is logged every training.eval_freq steps, if any.
    Raises UserError if another process trains in the workdir, the checkpoint does not fit the config, or a loss or
    gradient is not finite. After a signal of SAVING_SIGNALS, saves the state and raises Stopped.
    """
    training = config.training
    graphdef, state = losses.create_state(config)
    train_step = losses.make_train_step(config, graphdef)

    with contextlib.ExitStack() as stack:
        # Resume
        stack.enter_context(checkpoints.only_writer(workdir))
        signals = stack.enter_context(catching_signals())
        state = checkpoints.resume(config, workdir, losses.place(config, state))
        first_step = int(state.step)
        save = stack.enter_context(checkpoints.saving(config, workdir))
        writer = stack.enter_context(MetricsWriter(workdir, first_step))
        if first_step < training.n_iters:
            checkpoints.write_config(config, workdir)
        evaluation = PeriodicEvaluation(
            config,
            workdir,
            graphdef=graphdef,
            held_out=held_out,
            writer=writer,
            signals=signals if jax.process_count() == 1 else (),
            first_step=first_step,
        )
        evaluation.run(first_step, state.ema)  # a signal may have interrupted this evaluation in the previous run

        # Train
        batches = map(parallel.shard_batch, datasets.train_batches(images, config, first_step))
        batch = next(batches)
        recent_losses = collections.deque(maxlen=LOSSES_SHOWN)
        steps_per_second = Rate(first_step)
        steps = range(first_step + 1, training.n_iters + 1)
        progress = tqdm(steps, desc="train", total=training.n_iters, initial=first_step, unit="step")
        for step in progress:
            state, metrics = train_step(state, batch)
            batch = next(batches)  # loaded while the device computes
            values = _finite(step, metrics, recent_losses)  # waits, because a signal cannot cancel a dispatched step
            if _due(config, step, training.log_freq):
                writer.write(step, values | {"images_per_second": steps_per_second(step) * training.batch_size})
                progress.set_postfix(loss=f"{values['loss']:.4f}")

            # Save, evaluate and stop
            if _due(config, step, training.snapshot_freq, training.snapshot_freq_for_preemption):
                save(state)
            evaluation.run(step, state.ema)
            if _should_stop(step, signals):
                save(state)
                raise Stopped(step, _agreed(signals))
    return first_step


def _due(config: ConfigDict, step: int, *frequencies: int) -> bool:
    """Whether `step` is a multiple of one of the frequencies, or the last step. A frequency of 0 means never."""
    last = step == config.training.n_iters
    return step > 0 and any(frequency > 0 and (step % frequency == 0 or last) for frequency in frequencies)


def _finite(step: int, metrics: Mapping[str, SupportsFloat], recent_losses: collections.deque) -> dict[str, float]:
    """Waits for the device, returns the metrics as Python floats, and appends the loss to recent_losses.

    Raises UserError if the loss or the gradient norm is not finite.
    """
    values = {name: float(value) for name, value in metrics.items()}
    loss = values["loss"]
    norm = values["gradient_norm"]
    if not np.isfinite([loss, norm]).all():
        before = f" (before: {', '.join(recent_losses)})" if recent_losses else ""
        raise UserError(
            f"step {step}: the loss is {loss}{before} and the gradient norm is {norm}, but both must be finite: lower "
            "optim.lr and run the command again, with the same --workdir; it resumes from the last checkpoint"
        )
    recent_losses.append(f"{loss:.4g}")
    return values


# Between steps


@dataclasses.dataclass(frozen=True)
class PeriodicEvaluation:
    """Writes the loss on held-out images and a grid of samples at the steps where they are due.

    Attributes:
      config: gives the frequencies, and the settings of `mean_loss` and `generate`.
      workdir: the folder that the grids are saved to.
      graphdef: the network.
      held_out: the images of the loss; may be None if training.eval_freq is 0.
      writer: receives the loss.
      signals: the signals received so far. After the first signal, an evaluation ends without a result. With several
        processes it stays empty, because all of them must take part in an evaluation.
      first_step: the step from which this run resumed. Results that the previous run wrote for this step are kept.
    """

    config: ConfigDict
    workdir: Path
    graphdef: nnx.GraphDef
    held_out: HostPixels | None
    writer: MetricsWriter
    signals: Sequence[int]
    first_step: int

    def run(self, step: int, ema: Params) -> None:
        """Evaluates the weights `ema` of a step, if an evaluation is due and was not written before."""
        training = self.config.training
        if _due(self.config, step, training.eval_freq) and not self.writer.holds(step, "eval_loss"):
            self._write_loss(step, self._denoiser(ema))
        path = self.workdir / f"samples/step_{step:07d}.png"
        exists = step == self.first_step and path.exists()  # files of later steps are overwritten
        samples_due = training.snapshot_sampling and _due(self.config, step, training.snapshot_freq)
        if samples_due and not exists and not self.signals:
            self._save_samples(path, self._denoiser(ema))

    def _denoiser(self, ema: Params) -> Denoiser:
        return make_denoiser(self.config, self.graphdef, parallel.replicate(ema))

    def _write_loss(self, step: int, denoiser: Denoiser) -> None:
        loss = mean_loss(self.config, denoiser, self.held_out, signals=self.signals)
        if not self.signals:
            self.writer.write(step, {"eval_loss": loss})

    def _save_samples(self, path: Path, denoiser: Denoiser) -> None:
        size = self.config.training.sampling_size
        [(x0, count)] = generate(
            self.config,
            denoiser,
            mixture=None,
            timesteps=grid_of(self.config, denoiser.schedule, late=False),
            image_shape=datasets.image_shape(self.config),
            num=size,
            batch_size=size,
        )
        pixels = parallel.all_rows(datasets.to_uint8(x0, self.config.data.centered))[:count]
        plots.attempt(plots.save_grid, path, pixels)


def mean_loss(config: ConfigDict, denoiser: Denoiser, images: HostPixels, signals: Sequence[int] = ()) -> float:
    """The mean loss over a split. The t and the noise of each image are the same in every call.

    Stops as soon as `signals` contains a signal; the result is then not valid.
    """
    rng = key_for(config.seed, "eval_loss")
    total = 0.0
    for batch, keys, count in datasets.keyed_batches(images, parallel.round_up(config.eval.batch_size), rng):
        if signals:
            break
        per_image = losses.eval_loss(denoiser, batch, keys, centered=config.data.centered)
        total += parallel.all_rows(per_image)[:count].sum(dtype=np.float64)
    return total / len(images)


# Signals


@contextlib.contextmanager
def catching_signals() -> Iterator[list[int]]:
    """Yields a list that collects the numbers of arriving SAVING_SIGNALS. A second SIGINT interrupts at once.

    Repetitions of other signals do not interrupt, because they are normal: SIGXCPU arrives every second, and SIGHUP may
    come from both the shell and the terminal. Signals that are ignored at the start (nohup ignores SIGHUP) stay
    ignored. SIGINT is the exception, because shells ignore it in background processes.

    With several processes, JAX handles SIGTERM and notifies all of them. Other signals are then forwarded as SIGTERM.
    """
    received: list[int] = []
    forwards = jax.process_count() > 1

    def collect(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if forwards:
            os.kill(os.getpid(), signal.SIGTERM)
        elif number == signal.SIGINT:
            signal.signal(number, previous[number])

    previous = {}
    in_main_thread = threading.current_thread() is threading.main_thread()
    for number in SAVING_SIGNALS if in_main_thread else ():  # Python allows only the main thread to set handlers
        handler = signal.getsignal(number)
        ignored = handler == signal.SIG_IGN and number != signal.SIGINT
        if not ignored and not (forwards and number == signal.SIGTERM):
            previous[number] = handler
            signal.signal(number, collect)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _should_stop(step: int, signals: Sequence[int]) -> bool:
    """Whether all processes must stop after this step. It does not block. Call it exactly once per step."""
    if jax.process_count() > 1:
        return multihost_utils.reached_preemption_sync_point(step)
    return bool(signals)


def _agreed(signals: Sequence[int]) -> int:
    """The number of a signal that one of the processes has received; SIGTERM, which JAX handles, if none is known."""
    first = signals[0] if signals else 0
    return int(parallel.gather(np.asarray(first)).max()) or signal.SIGTERM
