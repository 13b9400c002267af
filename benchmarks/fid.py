"""Times what a FID takes: features against pytorch-fid's network, the distance against scipy.linalg.sqrtm.

python benchmarks/fid.py [--batch=32] [--rounds=3] [--torch_python=PATH]

Both sides run in turn, so that both see the same machine, and medians are compared. pytorch-fid runs in a process of
its own, whose interpreter --torch_python names; where it has none, only our times are printed.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import median

from timing import milliseconds

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np
import scipy.linalg
from flax import nnx

from metrics.frechet import frechet_distance
from models import inception

SIZE = 32


def our_features(batch: int):
    """A call of the network with weights of the right scale."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        scale = np.sqrt(2 / np.prod(leaf.shape[:-1])) if leaf.ndim == 4 else 0.1
        return (scale * rng.standard_normal(leaf.shape)).astype(np.float32)

    params = jax.tree.map(draw, nnx.state(nnx.eval_shape(lambda: inception.Inception(rngs=nnx.Rngs(0)))))
    extract = inception.features_fn(inception.Network(params, ""))
    images = rng.integers(0, 256, (batch, SIZE, SIZE, 3), np.uint8)
    return lambda: jax.block_until_ready(extract(images))


def compare_features(python: str, batch: int, rounds: int) -> None:
    ours, call = [], our_features(batch)
    call()
    if subprocess.run([python, "-c", "import pytorch_fid"], capture_output=True).returncode:
        print(f"{python} has no pytorch-fid: our time alone.")
        print(f"features, {batch} images: {batch / min(milliseconds(call)) * 1e3:.1f} images/s")
        return
    command = [python, Path(__file__).with_name("torch_inception.py"), str(batch), str(SIZE)]
    theirs = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for round_ in range(rounds + 1):
            found = min(milliseconds(call))
            print(file=process.stdin, flush=True)
            if round_:
                ours.append(found)
                theirs.append(float(process.stdout.readline()))
            else:
                process.stdout.readline()
        process.stdin.close()
    rates = [1e3 * batch / median(times) for times in (ours, theirs)]
    print(f"features: {rates[0]:.1f} images/s, pytorch-fid {rates[1]:.1f}, ratio {rates[0] / rates[1]:.2f}", flush=True)


def moments(seed: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Of 3 dim samples whose variances fall as 1/k, as those of features do."""
    samples = np.random.default_rng(seed).standard_normal((3 * dim, dim)) / np.sqrt(np.arange(1, dim + 1))
    return samples.mean(axis=0), np.cov(samples, rowvar=False)


def by_sqrtm(mean1, cov1, mean2, cov2) -> float:
    """pytorch-fid's formula."""
    root = scipy.linalg.sqrtm(cov1 @ cov2).real
    return np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * np.trace(root)


def compare_distances(dim: int, rounds: int) -> None:
    pair, times, values = (*moments(0, dim), *moments(1, dim)), {frechet_distance: [], by_sqrtm: []}, []
    for _ in range(rounds):
        for side in times:
            times[side] += milliseconds(lambda side=side: values.append(side(*pair)), 0.01)
    ours, theirs = (median(found) / 1e3 for found in times.values())
    print(
        f"distance of {dim} features: {ours:.2f} s, scipy.linalg.sqrtm {theirs:.2f} s, {theirs / ours:.1f} times as "
        f"fast; they differ by {np.ptp(values) / values[0]:.0e} of it"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torch_python", default=sys.executable)
    flags = parser.parse_args()
    compare_features(flags.torch_python, flags.batch, flags.rounds)
    compare_distances(inception.FEATURES, flags.rounds)


if __name__ == "__main__":
    main()
