"""Times both parts of an FID: the features, against pytorch-fid, and the distance, against scipy.linalg.sqrtm.

python -m benchmarks.fid [--batch=32] [--rounds=3] [--torch_python=PATH]

The two sides run alternately, so that other jobs on the machine slow both equally, and their medians are compared.
pytorch-fid runs in a separate process with the interpreter --torch_python. If that interpreter lacks pytorch-fid, only
our rate is printed.
"""

import argparse
import sys
from collections.abc import Callable
from statistics import median

import jax
import numpy as np
import scipy.linalg
from flax import nnx
from jaxtyping import Float

from benchmarks.timing import milliseconds
from benchmarks.torch_process import TorchProcess, can_import
from core.parallel import replicate
from metrics.frechet import frechet_distance
from models import inception

SIZE = 32  # height and width of the images


def feature_call(batch: int) -> Callable[[], object]:
    """Returns a function that extracts the features of one batch with an Inception network with random weights."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        scale = np.sqrt(2 / np.prod(leaf.shape[:-1])) if leaf.ndim == 4 else 0.1
        return (scale * rng.standard_normal(leaf.shape)).astype(np.float32)

    params = jax.tree.map(draw, nnx.state(nnx.eval_shape(lambda: inception.Inception(rngs=nnx.Rngs(0)))))
    extract = inception.Network(replicate(params), digest="")
    images = rng.integers(0, 256, (batch, SIZE, SIZE, 3), np.uint8)
    return lambda: jax.block_until_ready(extract(images))


def compare_features(python: str, batch: int, rounds: int) -> None:
    """Prints the images per second of our network and of pytorch-fid's network."""
    call = feature_call(batch)
    call()
    if not can_import(python, "pytorch_fid"):
        print(f"{python} has no pytorch-fid: only our own rate")
        print(f"features, {batch} images: {batch / min(milliseconds(call)) * 1e3:.1f} images/s")
        return
    ours = []
    theirs = []
    with TorchProcess(python, "torch_inception", str(batch), str(SIZE)) as process:
        for _ in range(rounds + 1):
            ours.append(min(milliseconds(call)))
            theirs.append(float(process.answer()))
    our_rate, their_rate = (1e3 * batch / median(times[1:]) for times in (ours, theirs))  # the first round compiles
    print(f"features: {our_rate:.1f} images/s, pytorch-fid {their_rate:.1f}, ratio {our_rate / their_rate:.2f}")


def moments(seed: int, dim: int) -> tuple[Float[np.ndarray, "{dim}"], Float[np.ndarray, "{dim} {dim}"]]:
    """Returns mean and covariance of 3 * dim random samples. Feature k has variance 1/k, similar to real features."""
    samples = np.random.default_rng(seed).standard_normal((3 * dim, dim)) / np.sqrt(np.arange(1, dim + 1))
    return samples.mean(axis=0), np.cov(samples, rowvar=False)


def sqrtm_distance(
    mean1: Float[np.ndarray, "dim"],
    cov1: Float[np.ndarray, "dim dim"],
    mean2: Float[np.ndarray, "dim"],
    cov2: Float[np.ndarray, "dim dim"],
) -> float:
    """Computes the Fréchet distance as pytorch-fid does."""
    root = scipy.linalg.sqrtm(cov1 @ cov2).real
    return float(np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * np.trace(root))


def compare_distances(dim: int, rounds: int) -> None:
    """Prints the seconds that both methods take for one distance between moments of `dim` features."""
    pair = (*moments(0, dim), *moments(1, dim))
    times = {frechet_distance: [], sqrtm_distance: []}
    values = []
    for _ in range(rounds):
        for side in times:
            times[side] += milliseconds(lambda side=side: values.append(side(*pair)), seconds=0.01)
    ours, theirs = (median(measured) / 1e3 for measured in times.values())
    print(
        f"distance of {dim} features: {ours:.2f} s, scipy.linalg.sqrtm {theirs:.2f} s, {theirs / ours:.1f} times as "
        f"fast; relative difference of the distances {np.ptp(values) / values[0]:.0e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.fid", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torch_python", default=sys.executable)
    flags = parser.parse_args()
    compare_features(flags.torch_python, flags.batch, flags.rounds)
    compare_distances(inception.FEATURES, flags.rounds)


if __name__ == "__main__":
    main()
