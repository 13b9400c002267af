"""Times the input pipeline, and the training step of the same config for comparison.

python -m benchmarks.input [--cases=digits,28x28,cifar10] [--rounds=3]

The pipeline reads 50,000 random images in shuffled order from a decoded split that is mapped into memory, flips half of
them, and moves batches to the device. Nothing else of the benchmark runs at the same time. The networks are those of
train_step.py.
"""

import argparse
import itertools
import tempfile
from pathlib import Path
from statistics import median

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.timing import milliseconds
from benchmarks.train_step import CASES, Ours
from core.parallel import shard_batch
from core.shapes import HostPixels
from datasets import train_batches

IMAGES = 50_000
BATCHES = 20  # timed together, because most of a batch is prepared in the background before it is requested


def decoded_images(folder: Path, image_size: int, num_channels: int) -> HostPixels:
    """Writes random images to a file in the folder, and maps them into memory."""
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, image_size, image_size, num_channels), np.uint8)
    np.save(folder / "images.npy", images)
    return np.load(folder / "images.npy", mmap_mode="r")


def stream_milliseconds(images: HostPixels, batch_size: int, seconds: float) -> list[float]:
    """Returns the milliseconds from the request of a batch until it is on the device, averaged over BATCHES batches."""
    config = ConfigDict({"seed": 0, "training": {"batch_size": batch_size}, "data": {"random_flip": True}})
    batches = train_batches(images, config, 0)

    def read() -> None:
        for batch in itertools.islice(batches, BATCHES):
            jax.block_until_ready(shard_batch(batch))

    return [total / BATCHES for total in milliseconds(read, seconds)]


def measure(name: str, rounds: int) -> tuple[float, float]:
    """Returns the median milliseconds of the input and of the training step of a batch.

    The first round compiles and is not counted.
    """
    case = CASES[name]
    network = Ours(case)
    input_times = []
    step_times = []
    with tempfile.TemporaryDirectory() as folder:
        images = decoded_images(Path(folder), case.image_size, case.num_channels)
        for round_index in range(rounds + 1):
            stream = stream_milliseconds(images, case.batch, seconds=1.0)
            step = network.milliseconds("train")
            if round_index > 0:
                input_times += stream
                step_times += step
    return median(input_times), median(step_times)


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.input", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    print(f"{'case':10}{'batch':>6}{'input, ms':>12}{'step, ms':>12}{'images/s in':>14}{'trained':>10}{'ratio':>9}")
    for name in flags.cases.split(","):
        batch = CASES[name].batch
        input_time, step_time = measure(name, flags.rounds)
        rates = f"{1e3 * batch / input_time:14,.0f}{1e3 * batch / step_time:10,.0f}{step_time / input_time:9.0f}"
        print(f"{name:10}{batch:6}{input_time:12.3f}{step_time:12.1f}{rates}", flush=True)


if __name__ == "__main__":
    main()
