"""Times how fast images come against how fast the training step of the matching config eats them.

python benchmarks/input.py [--cases=digits,28x28,cifar10] [--rounds=3]

The stream reads shuffled from a decoded split of 50,000 random images that is mapped into memory, flips half of them,
and brings batches to the device; nothing else runs meanwhile. The networks are those of train_step.py.
"""

import argparse
import itertools
import sys
import tempfile
from pathlib import Path
from statistics import median

from timing import milliseconds
from train_step import CASES, Ours

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np
from ml_collections import ConfigDict

from core.parallel import shard_batch
from datasets import train_batches

IMAGES = 50_000
BATCHES = 20  # timed together, since what a single one takes was mostly spent before it was asked for


def decoded_images(folder: Path, size: int, channels: int) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, size, size, channels), np.uint8)
    np.save(folder / "images.npy", images)
    return np.load(folder / "images.npy", mmap_mode="r")


def stream_milliseconds(images: np.ndarray, batch_size: int, seconds: float) -> list[float]:
    """Of each batch, on the device."""
    config = ConfigDict({"seed": 0, "training": {"batch_size": batch_size}, "data": {"random_flip": True}})
    batches = train_batches(images, config, 0)

    def read() -> None:
        for batch in itertools.islice(batches, BATCHES):
            jax.block_until_ready(shard_batch(batch))

    return [total / BATCHES for total in milliseconds(read, seconds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    print(f"{'case':10}{'batch':>6}{'input, ms':>12}{'step, ms':>12}{'images/s in':>14}{'eaten':>10}{'ratio':>9}")
    for case in flags.cases.split(","):
        batch, size, channels = CASES[case][:3]
        network, incoming, eaten = Ours(*CASES[case]), [], []
        with tempfile.TemporaryDirectory() as folder:
            images = decoded_images(Path(folder), size, channels)
            for round_ in range(flags.rounds + 1):  # in turn; the first, which compiles, is left out
                stream, step = stream_milliseconds(images, batch, 1.0), network.milliseconds("train")
                incoming, eaten = (incoming + stream, eaten + step) if round_ else ([], [])
        source, sink = median(incoming), median(eaten)
        rates = f"{1e3 * batch / source:14,.0f}{1e3 * batch / sink:10,.0f}{sink / source:9.0f}"
        print(f"{case:10}{batch:6}{source:12.3f}{sink:12.1f}{rates}", flush=True)


if __name__ == "__main__":
    main()
