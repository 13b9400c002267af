"""Searches for copies of training pictures among generated pictures, by the distance to the nearest training picture.

python -m experiments.copies [--config=emoji] [--workdir=PATH] [--dest=PATH]

--config names a file of configs/ddpm whose data set has a test split. The mixture must be fitted before:
--mode=fid_stats --config.sampling.components=40. Held-out pictures cannot be copies, so their distances to training
pictures show how close pictures are by chance. The script writes copies.txt, with quantiles of the distances, and
copies.png, with the closest pictures.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

import datasets
from configs.runs import without_scores
from core import plots, tables
from core.shapes import HostPixels
from experiments.runs import Experiment, main, write_and_print
from sampling.late_start import ONE

SEED = 1
SAMPLES = 1000  # number of images of each run
COMPONENTS = "40"  # sampling.components of the mixture
RUNS = (  # sampler, n, start (None: pure noise), and the components of the start
    ("ddim", 50, None, ONE),
    ("ddim", 5, None, ONE),
    ("ddim", 5, 500, ONE),
    ("ddim", 5, 300, COMPONENTS),
    ("ddim", 3, 300, COMPONENTS),
)
CLOSEST = 16  # number of pictures in a row of the figure
COPY_QUANTILE = 0.05  # a picture is close if its distance is below this quantile of held-out distances


def nearest(images: HostPixels, training: HostPixels) -> tuple[Int[np.ndarray, "images"], Float[np.ndarray, "images"]]:
    """Returns the index of the nearest training image of every image, and its RMS distance in grey levels."""
    a, b = (part.reshape(len(part), -1).astype(np.float32) for part in (images, training))
    found = ((b**2).sum(axis=1) - 2 * a @ b.T).argmin(axis=1)
    return found, np.sqrt(np.mean((a - b[found]) ** 2, axis=1, dtype=np.float64))


def copies(config: ConfigDict, workdir: Path, dest: Path) -> None:
    """Writes copies.txt (quantiles of distances) and copies.png (the pictures closest to training pictures)."""
    experiment = Experiment(without_scores(config, SAMPLES), workdir, sorted({components for *_, components in RUNS}))
    training = datasets.load(config, "train").images
    sets = {"held-out": datasets.load(config, "test").images}
    for sampler, n_steps, t_start, components in RUNS:
        settings = {"t_start": t_start, "components": components}
        timesteps, images = experiment.draw(sampler, n_steps, seed=SEED, num=SAMPLES, **settings)
        kind = "" if components == ONE else f", {components} Gaussians"
        sets[f"{sampler}, n = {n_steps}, from {timesteps[0]}{kind}"] = images
    write_and_print(dest / "copies.txt", copies_table(sets, training))
    first, *_, last = sets
    shown = {name: sets[name] for name in (first, last)}
    plots.save_comparison(dest / "copies.png", copies_rows(shown, training))


def copies_table(sets: Mapping[str, HostPixels], training: HostPixels) -> str:
    """Makes a table of quantiles of the distance to the nearest training picture. The first set must be held out."""
    distances = {name: nearest(images, training)[1] for name, images in sets.items()}
    close = np.quantile(next(iter(distances.values())), COPY_QUANTILE)
    lines = []
    for name, found in distances.items():
        quantiles = [f"{np.quantile(found, level):.1f}" for level in (0.01, 0.05, 0.5)]
        lines.append([name, str(len(found)), *quantiles, f"{np.mean(found < close):.1%}"])
    return tables.aligned(("pictures", "number", "1%", "5%", "median", f"below {close:.1f}"), lines)


def copies_rows(sets: Mapping[str, HostPixels], training: HostPixels) -> list[tuple[str, HostPixels]]:
    """Returns, for each set, the CLOSEST pictures nearest to a training picture, and these training pictures."""
    rows = []
    for name, images in sets.items():
        found, distances = nearest(images, training)
        order = np.argsort(distances, kind="stable")[:CLOSEST]
        rows += [(name, images[order]), ("nearest training", training[found[order]])]
    return rows


if __name__ == "__main__":
    main("experiments.copies", __doc__, {"copies": copies}, ("emoji",), any_network=True)
