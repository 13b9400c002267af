"""Times fitting the Gaussian of late starts and sampling from it, on synthetic images with a natural spectrum.

python -m benchmarks.late_start [--parts=paper,large,draw] [--images=50000] [--rounds=5]

paper: compares our fit, which serves all t, with the method of the paper's code, at 32x32x3. The paper's code makes a
noised copy of the data set for each of 11 starts and stores the covariance of each copy. Our fit is timed before the
first, the middle and the last copy, and the median is reported. If other jobs run, compare CPU seconds and set
OPENBLAS_NUM_THREADS=1, because waiting threads of BLAS use CPU time.
large: the fit at 64x64x3 with rank 1,024 and at 256x256x3 with rank 256, each in a separate process, with its peak
memory.
draw: compares a batch of late starts with one network evaluation of that batch. The two run alternately.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

import datasets
from benchmarks.timing import in_turn
from configs.ddpm import celeba64, cifar10, digits
from core import tables
from core.diffusion import Denoiser, NoiseSchedule
from core.huge_pages import restart_with_huge_pages
from core.shapes import HostPixels, ImageShape
from models import create_model, make_denoiser
from sampling.eigenpairs import PASSES
from sampling.late_start import DataGaussian

STARTS = (50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999)
LARGE = {64: (1024, 5000), 256: (256, 2000)}  # image size: rank, number of images
BATCH = 64  # number of images synthesised at a time
FIT_BATCH = 1024  # number of images per batch of a fit
COLOURS = np.array([[1, 0.3, 0.2], [1, -0.2, 0.1], [1, 0, -0.4]])  # rows: channels; columns: brightness and two hues
MEAN = (124, 116, 104)  # mean of each channel
CONTRAST = 50


class Draws(NamedTuple):
    """A network, a batch size, and the rank of the Gaussian from which late starts are drawn (None: full rank)."""

    config_module: ModuleType
    batch: int
    rank: int | None


DRAWS = {"digits": Draws(digits, 128, None), "cifar10": Draws(cifar10, 16, None), "celeba64": Draws(celeba64, 4, 256)}


class Seconds(NamedTuple):
    clock: float
    cpu: float


def timed(call: Callable[[], object]) -> tuple[object, Seconds]:
    """Returns the result of a call and the time it took."""
    clock = time.perf_counter()
    cpu = time.process_time()
    result = call()
    return result, Seconds(time.perf_counter() - clock, time.process_time() - cpu)


def write_images(path: Path, num: int, size: int) -> None:
    """Writes random colour images, uint8 [num, size, size, 3], with power proportional to 1/f^2 (Field 1987)."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    amplitude = 1 / np.maximum(frequency, 1 / size)
    amplitude /= np.sqrt(np.mean(amplitude**2))
    file = np.lib.format.open_memmap(path, "w+", np.uint8, (num, size, size, 3))
    for start in tqdm(range(0, num, BATCH), f"{size}x{size}x3", leave=False):
        white = np.random.default_rng(start).standard_normal((min(BATCH, num - start), 3, size, size), np.float32)
        fields = np.fft.ifft2(amplitude * np.fft.fft2(white)).real
        pixels = MEAN + CONTRAST * np.einsum("ck,bkhw->bhwc", COLOURS, fields)
        file[start : start + BATCH] = pixels.round().clip(0, 255)


def fit_and_save(images: HostPixels, path: Path, rank: int | None = None) -> DataGaussian:
    """Fits and saves the Gaussian as --mode=fid_stats does."""

    def batches() -> Iterator[HostPixels]:
        return (images[start : start + FIT_BATCH] for start in range(0, len(images), FIT_BATCH))

    gaussian = DataGaussian.fit(batches, rank).scaled(2 / 255, -1)
    gaussian.save(path)
    return gaussian


def noised_moments(images: HostPixels, t: int) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim dim"]]:
    """Computes mean and covariance of a noised copy of the data set, as the paper's code does."""
    alpha_bar = NoiseSchedule.linear().alpha_bars[t]
    x = images.reshape(len(images), -1).astype(np.float32) / 127.5 - 1
    noise = np.random.default_rng(t).standard_normal(x.shape, np.float32)
    x = np.float32(np.sqrt(alpha_bar)) * x + np.float32(np.sqrt(1 - alpha_bar)) * noise
    return x.mean(axis=0, dtype=np.float64), np.cov(x, rowvar=False)


def against_the_paper(num: int, folder: Path) -> str:
    """Makes the table of time and file size of both methods."""
    write_images(folder / "images.npy", num, size=32)
    images = np.load(folder / "images.npy")
    copies = {}
    theirs = []
    ours = []
    for i, t in enumerate(tqdm(STARTS, "noised copies", leave=False)):
        if i in (0, len(STARTS) // 2, len(STARTS) - 1):
            _, seconds = timed(partial(fit_and_save, images, folder / "ours.npz"))
            ours.append(seconds)
        (copies[f"mean_{t}"], copies[f"cov_{t}"]), seconds = timed(partial(noised_moments, images, t))
        theirs.append(seconds)
    _, seconds = timed(partial(np.savez, folder / "theirs.npz", **copies))
    theirs.append(seconds)
    costs = {
        "11 noised copies": (*map(sum, zip(*theirs, strict=True)), _megabytes(folder / "theirs.npz")),
        "ours": (*map(median, zip(*ours, strict=True)), _megabytes(folder / "ours.npz")),
    }
    ratios = [a / b for a, b in zip(*costs.values(), strict=True)]
    rows = [(name, *(f"{value:.1f}" for value in values)) for name, values in {**costs, "ratio": ratios}.items()]
    return tables.aligned((f"{num} images of 32x32x3", "seconds", "CPU seconds", "file, MB"), rows)


def _megabytes(path: Path) -> float:
    return path.stat().st_size / 1e6


def fit_and_report(images: Path, rank: int) -> None:
    """Fits a Gaussian and prints the costs as JSON. `large_sizes` runs this in a separate process."""
    fit = partial(fit_and_save, np.load(images, mmap_mode="r"), images.with_name("gaussian.npz"), rank)
    gaussian, seconds = timed(fit)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps([*seconds, peak, gaussian.captured]))


def large_sizes(folder: Path) -> str:
    """Makes the table of the fits at LARGE sizes."""
    rows = []
    for size, (rank, num) in LARGE.items():
        write_images(folder / "images.npy", num, size)
        command = [sys.executable, "-m", "benchmarks.late_start"]
        command += [f"--fit={folder / 'images.npy'}", f"--rank={rank}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        clock, cpu, peak, captured = json.loads(done.stdout)
        each = f"{1e3 * clock / num / PASSES:.1f}"
        numbers = (str(rank), str(num), f"{clock:.0f}", f"{cpu:.0f}", each, f"{peak:.2f}", f"{captured:.1%}")
        rows.append((f"{size}x{size}x3", *numbers))
    names = ("rank", "images", "seconds", "CPU seconds", "ms an image and pass", "peak, GB", "of the variance")
    return tables.aligned(("size", *names), rows)


def draws(rounds: int) -> str:
    """Makes the table of late starts against network evaluations."""
    rows = []
    for name, (config_module, batch, rank) in DRAWS.items():
        config = config_module.get_config()
        shape = datasets.image_shape(config)
        denoiser = make_denoiser(config, *create_model(config, jax.random.key(0)))
        gaussian = random_gaussian(shape, rank)
        noise = jax.random.normal(jax.random.key(1), (batch, *shape))
        late_start = partial(jax.jit(DataGaussian.sample), gaussian, noise, 0.1)
        evaluation = partial(jax.jit(Denoiser.eps), denoiser, noise, jnp.full(batch, 500.0))
        compared = in_turn(_blocking(late_start), _blocking(evaluation), rounds)
        times = [f"{1e3 * seconds:.2f}" for seconds in (compared.ours, compared.other)]
        sizes = (str(np.prod(shape)), str(gaussian.eigenvalues.size), str(batch))
        rows.append((name, *sizes, *times, f"{compared.ratio:.2%}"))
    names = ("d", "directions", "batch", "draw, ms", "network, ms", "ratio")
    return tables.aligned(("network", *names), rows)


def _blocking(call: Callable[[], object]) -> Callable[[], object]:
    """Wraps a call so that it returns only when its result is computed."""
    return lambda: jax.block_until_ready(call())


def random_gaussian(shape: ImageShape, rank: int | None) -> DataGaussian:
    """Makes a Gaussian with random eigenvectors, in float32 on the device, as for sampling."""
    dim = int(np.prod(shape))
    rank = rank or dim
    vectors, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((dim, rank)))
    gaussian = DataGaussian(
        mean=np.zeros(dim),
        eigenvectors=vectors,
        eigenvalues=100 / np.arange(1, rank + 1),
        residual_variance=np.float64(0.01),
        image_shape=shape,
    )
    return jax.tree.map(jnp.float32, gaussian)


def main() -> None:
    restart_with_huge_pages()  # as main.py does
    parser = argparse.ArgumentParser(
        "python -m benchmarks.late_start", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
                "large": partial(large_sizes, folder),
                "draw": partial(draws, flags.rounds),
            }
            print(f"{work[part]()}\n", flush=True)


if __name__ == "__main__":
    main()
