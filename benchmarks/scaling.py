"""What grows how: a training step against batch, image size and devices; statistics against N and d; samples against N.

python benchmarks/scaling.py [--rounds=3]

The network is that of digits. All cases take turns, so that all see the same machine, and medians of the CPU time of
all threads are compared, which other jobs change less than the clock. Only the devices have processes of their own:
they are virtual and share this machine's cores, so that with as many images in all, what more of them cost is the price
of dividing alone. MB is what the compiler plans for the temporaries of a step on each device.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from timing import milliseconds

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np

import datasets
import losses
from configs.ddpm import digits
from core import parallel, tables
from core.huge_pages import restart_with_huge_pages
from core.moments import Moments
from models import make_eps_fn, make_schedule
from sampling.generate import generate
from sampling.time_grid import time_grid

BATCHES, SIZES, DEVICES = (8, 16, 32, 64), (8, 16, 32), (1, 2, 4)
VECTORS, DIMS = (1000, 2000, 4000), (256, 512, 1024, 2048)
SAMPLES = (128, 256, 512)


class Step:
    """A training step of the digits' network on all devices, and the megabytes of its temporaries on each."""

    def __init__(self, batch: int = 32, size: int = 8):
        config = digits.get_config()
        config.data.image_size = size
        graphdef, state = losses.create_state(config)
        self.state = losses.place(config, state)
        images = np.random.default_rng(0).integers(0, 256, (batch, *datasets.image_shape(config)), np.uint8)
        self.images = parallel.shard_batch(images)
        step = losses.make_train_step(config, graphdef, make_schedule(config))
        self.step = step.lower(self.state, self.images).compile()
        self.megabytes = self.step.memory_analysis().temp_size_in_bytes / 1e6

    def __call__(self) -> None:
        self.state, _ = self.step(self.state, self.images)
        jax.block_until_ready(self.state)


def statistics(count: int, dim: int) -> Callable[[], None]:
    vectors = np.random.default_rng(0).standard_normal((count, dim))

    def call():
        moments = Moments(dim)
        for start in range(0, count, 500):
            moments.update(vectors[start : start + 500])

    return call


def samples(count: int) -> Callable[[], None]:
    config = digits.get_config()
    graphdef, state = losses.create_state(config)
    eps_fn, schedule = make_eps_fn(graphdef, parallel.replicate(state.ema)), make_schedule(config)

    def call():
        shape = datasets.image_shape(config)
        for batch, _ in generate(config, eps_fn, schedule, None, time_grid(10, 999), shape, count, 128):
            jax.block_until_ready(batch)

    return call


def cpu_milliseconds(call: Callable[[], None]) -> list[float]:
    return milliseconds(call, clock=time.process_time)


def in_turns(rounds: int) -> list[list[str]]:
    cases = {
        "step, batch": {batch: Step(batch=batch) for batch in BATCHES},
        "step, image size (batch 32)": {size: Step(size=size) for size in SIZES},
        "statistics, N (d = 1,024)": {count: statistics(count, 1024) for count in VECTORS},
        "statistics, d (N = 2,000)": {dim: statistics(2000, dim) for dim in DIMS},
        "samples, N (DDIM, n = 10)": {count: samples(count) for count in SAMPLES},
    }
    times = {(name, value): [] for name, calls in cases.items() for value in calls}
    for _ in range(rounds):
        for name, value in times:
            times[name, value] += cpu_milliseconds(cases[name][value])
    rows = []
    for name, calls in cases.items():
        found = {value: (median(times[name, value]), getattr(call, "megabytes", None)) for value, call in calls.items()}
        rows += compared(name, found)
    return rows


def with_devices(rounds: int) -> list[list[str]]:
    found = {}
    for devices in DEVICES:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        command = [sys.executable, __file__, f"--rounds={rounds}", "--devices"]
        told = subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, check=True, stdout=subprocess.PIPE)
        found[devices] = tuple(map(float, told.stdout.split()))
    return compared("step, devices (batch 32 in all)", found)


def compared(name: str, found: dict[int, tuple[float, float | None]]) -> list[list[str]]:
    """A row for every value, with the ratio of its time to that of the value before."""
    rows, before = [], None
    for value, (now, megabytes) in found.items():
        ratio, memory = f"{now / before:.2f}" if before else "", f"{megabytes:.1f}" if megabytes else ""
        rows.append([name, f"{value:,}", f"{now:.1f}", ratio, memory])
        before = now
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--devices", action="store_true", help="time one step on all devices, for the process above")
    args = parser.parse_args()
    restart_with_huge_pages()  # as main.py does
    if args.devices:
        step = Step()
        print(median(each for _ in range(args.rounds) for each in cpu_milliseconds(step)), step.megabytes)
    else:
        rows = in_turns(args.rounds) + with_devices(args.rounds)
        print(tables.aligned(("against", "", "CPU ms", "ratio", "MB"), rows))
