"""Measures how time and memory of a train step, feature statistics and sampling grow with the size of the problem.

python -m benchmarks.scaling [--rounds=3]

A train step is measured for several batch sizes, image sizes and numbers of devices. Statistics are measured for
several numbers N of vectors and dimensions d. Sampling is measured for several numbers N of images. The network is that
of configs/ddpm/digits.py. The cases run alternately, so that other jobs on the machine slow all equally. The CPU
time of all threads is measured, because it depends less on other jobs than elapsed time. Medians are printed. Each
number of devices is measured in a separate process. The devices are virtual and share this machine's cores, and the
total batch size is always the same, so the extra time is the cost of dividing the work. MB is the size of the temporary
buffers that the compiler plans for a step on each device.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple

import jax
import numpy as np

import datasets
import losses
from benchmarks.timing import milliseconds
from configs.ddpm import digits
from core import parallel, tables
from core.huge_pages import restart_with_huge_pages
from core.moments import Moments
from models import make_denoiser
from sampling.generate import generate
from sampling.time_grid import time_grid

BATCHES = (8, 16, 32, 64)
SIZES = (8, 16, 32)
DEVICES = (1, 2, 4)
VECTORS = (1000, 2000, 4000)
DIMS = (256, 512, 1024, 2048)
SAMPLES = (128, 256, 512)

Call = Callable[[], None]


class Step:
    """A train step of the network for digits on all devices. Calling the object runs one step.

    Attributes:
      megabytes: the size of the step's temporary buffers on each device.
    """

    def __init__(self, batch: int = 32, size: int = 8):
        config = digits.get_config()
        config.data.image_size = size
        graphdef, state = losses.create_state(config)
        self._state = losses.place(config, state)
        images = np.random.default_rng(0).integers(0, 256, (batch, *datasets.image_shape(config)), np.uint8)
        self._images = parallel.shard_batch(images)
        step = losses.make_train_step(config, graphdef)
        self._step = step.lower(self._state, self._images).compile()
        self.megabytes = self._step.memory_analysis().temp_size_in_bytes / 1e6

    def __call__(self) -> None:
        self._state, _ = self._step(self._state, self._images)
        jax.block_until_ready(self._state)


def statistics_call(count: int, dim: int) -> Call:
    """Returns a function that accumulates the moments of `count` vectors of length `dim`."""
    vectors = np.random.default_rng(0).standard_normal((count, dim))

    def call():
        moments = Moments(dim)
        for start in range(0, count, 500):
            moments.update(vectors[start : start + 500])

    return call


def sampling_call(count: int) -> Call:
    """Returns a function that draws `count` digits with DDIM and n = 10."""
    config = digits.get_config()
    graphdef, state = losses.create_state(config)
    denoiser = make_denoiser(config, graphdef, parallel.replicate(state.ema))
    settings = {"image_shape": datasets.image_shape(config), "num": count, "batch_size": 128}

    def call():
        for batch, _ in generate(config, denoiser, mixture=None, timesteps=time_grid(10, 999), **settings):
            jax.block_until_ready(batch)

    return call


def cpu_milliseconds(call: Call) -> list[float]:
    return milliseconds(call, clock=time.process_time)


class Measured(NamedTuple):
    """The cost of one case."""

    cpu_milliseconds: float
    megabytes: float | None


def on_this_machine(rounds: int) -> list[list[str]]:
    """Measures all cases except the numbers of devices. Returns rows of the table."""
    cases: dict[str, dict[int, Call]] = {
        "step, batch": {batch: Step(batch=batch) for batch in BATCHES},
        "step, image size (batch 32)": {size: Step(size=size) for size in SIZES},
        "statistics, N (d = 1,024)": {count: statistics_call(count, 1024) for count in VECTORS},
        "statistics, d (N = 2,000)": {dim: statistics_call(2000, dim) for dim in DIMS},
        "samples, N (DDIM, n = 10)": {count: sampling_call(count) for count in SAMPLES},
    }
    times = {(name, value): [] for name, calls in cases.items() for value in calls}
    for _ in range(rounds):
        for name, value in times:
            times[name, value] += cpu_milliseconds(cases[name][value])
    rows = []
    for name, calls in cases.items():
        measured = {
            value: Measured(median(times[name, value]), getattr(call, "megabytes", None))
            for value, call in calls.items()
        }
        rows += table_rows(name, measured)
    return rows


def with_devices(rounds: int) -> list[list[str]]:
    """Measures a train step on several numbers of virtual devices, each in a separate process. Returns rows."""
    measured = {}
    for devices in DEVICES:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        command = [sys.executable, "-m", "benchmarks.scaling", f"--rounds={rounds}", "--devices"]
        done = subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, check=True, stdout=subprocess.PIPE)
        measured[devices] = Measured(*map(float, done.stdout.split()))
    return table_rows("step, devices (batch 32 in all)", measured)


def table_rows(name: str, measured: Mapping[int, Measured]) -> list[list[str]]:
    """Makes a row for each value, with the ratio of its time to the time of the previous value."""
    rows = []
    before = None
    for value, (now, megabytes) in measured.items():
        ratio = f"{now / before:.2f}" if before else ""
        memory = f"{megabytes:.1f}" if megabytes else ""
        rows.append([name, f"{value:,}", f"{now:.1f}", ratio, memory])
        before = now
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--devices", action="store_true", help="measure one step on all devices; for `with_devices`")
    flags = parser.parse_args()
    if flags.devices:
        step = Step()
        times = [each for _ in range(flags.rounds) for each in cpu_milliseconds(step)]
        print(median(times), step.megabytes)
        return
    rows = on_this_machine(flags.rounds) + with_devices(flags.rounds)
    print(tables.aligned(("against", "", "CPU ms", "ratio", "MB"), rows))


if __name__ == "__main__":
    restart_with_huge_pages()  # as main.py does
    main()
