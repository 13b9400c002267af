"""Times the statistics of a late start and its draws, on synthetic images with the spectrum of natural ones.

python benchmarks/late_start.py [--parts=paper,large,draw] [--images=50000] [--rounds=5]

paper: the Gaussian for all t at 32x32x3 against the paper's way, which noises the data set anew for each of 11 starts
and stores each copy's covariance. Ours is timed before, amid and after the copies, and its median counts. CPU seconds
tell more than the clock where other jobs run; set OPENBLAS_NUM_THREADS=1 there, since BLAS's threads spin as they wait.
large: 64x64x3 at rank 1,024 and 256x256x3 at rank 256, each in a process of its own that reports its peak memory.
draw: a batch of late starts against one evaluation of the network that it is for; the two take turns.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from timing import in_turn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import datasets
from configs.ddpm import celeba64, cifar10, digits
from core import tables
from core.diffusion import NoiseSchedule
from core.huge_pages import restart_with_huge_pages
from models import create_model, make_eps_fn
from sampling.eigenpairs import PASSES
from sampling.late_start import DataGaussian

STARTS = (50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999)
LARGE = {64: (1024, 5000), 256: (256, 2000)}  # image size: rank, images
DRAWN = {"digits": (digits, 128, None), "cifar10": (cifar10, 16, None), "celeba64": (celeba64, 4, 256)}  # batch, rank
BATCH = 64  # images made at a time
ROWS = 1024  # images fitted at a time
COLOURS = np.array([[1, 0.3, 0.2], [1, -0.2, 0.1], [1, 0, -0.4]])  # channels by light and two hues
MEAN, CONTRAST = (124, 116, 104), 50


def write_images(path: Path, num: int, size: int) -> None:
    """Random images, uint8 [num, size, size, 3], whose power falls as 1/f^2 (Field 1987), as a .npy."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    amplitude = 1 / np.maximum(frequency, 1 / size)
    amplitude /= np.sqrt(np.mean(amplitude**2))
    file = np.lib.format.open_memmap(path, "w+", np.uint8, (num, size, size, 3))
    for start in tqdm(range(0, num, BATCH), f"{size}x{size}x3", leave=False):
        white = np.random.default_rng(start).standard_normal((min(BATCH, num - start), 3, size, size), np.float32)
        fields = np.fft.ifft2(amplitude * np.fft.fft2(white)).real
        pixels = MEAN + CONTRAST * np.einsum("ck,bkhw->bhwc", COLOURS, fields)
        file[start : start + BATCH] = pixels.round().clip(0, 255)


def fit_and_save(images: np.ndarray, path: Path, rank: int | None = None) -> DataGaussian:
    """As --mode=fid_stats does."""

    def batches():
        return (images[start : start + ROWS] for start in range(0, len(images), ROWS))

    gaussian = DataGaussian.fit(batches, rank).scaled(2 / 255, -1)
    gaussian.save(path)
    return gaussian


def noised_moments(images: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray]:
    """The paper's way: mean and covariance of one noised copy of the data set."""
    x, alpha_bar = images.reshape(len(images), -1).astype(np.float32) / 127.5 - 1, NoiseSchedule.linear().alpha_bars[t]
    noise = np.random.default_rng(t).standard_normal(x.shape, np.float32)
    x = np.float32(np.sqrt(alpha_bar)) * x + np.float32(np.sqrt(1 - alpha_bar)) * noise
    return x.mean(axis=0, dtype=np.float64), np.cov(x, rowvar=False)


class Seconds(NamedTuple):
    clock: float
    cpu: float


def timed(call: Callable) -> tuple[object, Seconds]:
    clock, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, Seconds(time.perf_counter() - clock, time.process_time() - cpu)


def against_the_paper(num: int, folder: Path) -> str:
    write_images(folder / "images.npy", num, 32)
    images, copies, theirs, ours = np.load(folder / "images.npy"), {}, [], []
    for i, t in enumerate(tqdm(STARTS, "noised copies", leave=False)):
        if i in (0, len(STARTS) // 2, len(STARTS) - 1):
            ours.append(timed(partial(fit_and_save, images, folder / "ours.npz"))[1])
        (copies[f"mean_{t}"], copies[f"cov_{t}"]), seconds = timed(partial(noised_moments, images, t))
        theirs.append(seconds)
    theirs.append(timed(partial(np.savez, folder / "theirs.npz", **copies))[1])
    sides = [Seconds(*(sum(part) for part in zip(*theirs, strict=True)))]
    sides.append(Seconds(*(median(part) for part in zip(*ours, strict=True))))
    sizes = [(folder / f"{side}.npz").stat().st_size / 1e6 for side in ("theirs", "ours")]
    rows = [
        (name, f"{seconds.clock:.1f}", f"{seconds.cpu:.1f}", f"{size:.1f}")
        for name, seconds, size in zip(("11 noised copies", "ours"), sides, sizes, strict=True)
    ]
    ratios = [a / b for a, b in zip((*sides[0], sizes[0]), (*sides[1], sizes[1]), strict=True)]
    rows.append(("ratio", *(f"{ratio:.1f}" for ratio in ratios)))
    return tables.aligned((f"{num} images of 32x32x3", "seconds", "CPU seconds", "file, MB"), rows)


def fit_and_report(images: Path, rank: int) -> None:
    """What a child does."""
    fit = partial(fit_and_save, np.load(images, mmap_mode="r"), images.with_name("gaussian.npz"), rank)
    gaussian, seconds = timed(fit)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps([*seconds, peak, gaussian.captured]))


def at_large_sizes(folder: Path) -> str:
    rows = []
    for size, (rank, num) in LARGE.items():
        write_images(folder / "images.npy", num, size)
        command = [sys.executable, __file__, f"--fit={folder / 'images.npy'}", f"--rank={rank}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        clock, cpu, peak, captured = json.loads(done.stdout)
        each = f"{1e3 * clock / num / PASSES:.1f}"
        numbers = str(rank), str(num), f"{clock:.0f}", f"{cpu:.0f}", each, f"{peak:.2f}", f"{captured:.1%}"
        rows.append((f"{size}x{size}x3", *numbers))
    names = "rank", "images", "seconds", "CPU seconds", "ms an image and pass", "peak, GB", "of the variance"
    return tables.aligned(("size", *names), rows)


def draws(rounds: int) -> str:
    rows = []
    for name, (module, batch, rank) in DRAWN.items():
        config = module.get_config()
        shape = datasets.image_shape(config)
        eps_fn, gaussian = make_eps_fn(*create_model(config, jax.random.key(0))), random_gaussian(shape, rank)
        noise = jax.random.normal(jax.random.key(1), (batch, *shape))
        draw, evaluate = jax.jit(DataGaussian.sample), jax.jit(lambda eps_fn, x, t: eps_fn(x, t))
        sides = (
            lambda draw=draw, gaussian=gaussian, noise=noise: jax.block_until_ready(draw(gaussian, noise, 0.1)),
            lambda eps_fn=eps_fn, evaluate=evaluate, noise=noise: jax.block_until_ready(
                evaluate(eps_fn, noise, jnp.full(len(noise), 500.0))
            ),
        )
        *seconds, ratio = in_turn(*sides, rounds)
        times = [f"{1e3 * value:.2f}" for value in seconds]
        rows.append((name, str(np.prod(shape)), str(gaussian.eigenvalues.size), str(batch), *times, f"{ratio:.2%}"))
    names = "d", "directions", "batch", "draw, ms", "network, ms", "ratio"
    return tables.aligned(("network", *names), rows)


def random_gaussian(shape: tuple[int, int, int], rank: int | None) -> DataGaussian:
    """On the devices, as draws see it."""
    dim = int(np.prod(shape))
    rng, rank = np.random.default_rng(0), rank or dim
    vectors, _ = np.linalg.qr(rng.standard_normal((dim, rank)))
    gaussian = DataGaussian(np.zeros(dim), vectors, 100 / np.arange(1, rank + 1), np.float64(0.01), shape)
    return jax.tree.map(jnp.float32, gaussian)


def main() -> None:
    restart_with_huge_pages()  # as main.py does
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="paper,large,draw")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fit", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.fit:
        fit_and_report(flags.fit, flags.rank)
        return
    for part in flags.parts.split(","):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            work = {
                "paper": partial(against_the_paper, flags.images, folder),
                "large": partial(at_large_sizes, folder),
                "draw": partial(draws, flags.rounds),
            }
            print(f"{work[part]()}\n", flush=True)


if __name__ == "__main__":
    main()
