"""Tests whether the Fréchet distance on certain features orders pictures by quality.

python -m experiments.features order | agree [--config=digits] [--workdir=PATH] [--dest=PATH]

--config is digits, fashion_mnist, emoji or another file of configs/ddpm.
order: the distance between real pictures and other real pictures that were changed with growing severity (FAMILIES).
The distance should be smallest without a change, and grow with the severity.
agree: the rank correlation, over settings of the sampler, between the distance on random convolutions and the distance
on the classifier of the data set. This part needs the network of the workdir and a classifier.

Two kinds of features are used: those of the data set's classifier, if it has been trained, and those of random
convolutions.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import scipy.ndimage
import scipy.stats
from jaxtyping import Float, Int
from ml_collections import ConfigDict
from tqdm import tqdm

import datasets
from configs.runs import without_scores
from core import tables
from core.moments import Moments
from core.shapes import HostPixels
from experiments.runs import Experiment, main, write_and_print
from images.emoji import is_held_out, read_emoji
from metrics.features import Features, classifier_path, load_features
from metrics.frechet import frechet_distance

MOST_PICTURES = 5000  # in each of the two sets that are compared
BATCH_SIZE = 250

SAMPLES = 1000  # number of samples for each setting of the sampler
CELLS = [("ddim", n, t) for n in (3, 5, 10) for t in (None, 700, 500, 300)] + [("dpmpp_2m", 5, t) for t in (None, 500)]

Labels = Int[np.ndarray, "images"]
Change = Callable[[HostPixels, Labels, np.random.Generator], HostPixels]


def noised(level: int) -> Change:
    """Adds normal noise of `level` grey levels."""
    return lambda images, labels, rng: _rounded(images + level * rng.standard_normal(images.shape))


def blurred(width: float) -> Change:
    """Blurs with a Gaussian whose standard deviation is `width` pixels."""
    return lambda images, labels, rng: _rounded(
        scipy.ndimage.gaussian_filter(images.astype(float), (0, width, width, 0))
    )


def paled(contrast: float) -> Change:
    """Moves all pictures towards their mean."""
    return lambda images, labels, rng: _rounded(images.mean(axis=0) + contrast * (images - images.mean(axis=0)))


def of_few_labels(share: float) -> Change:
    """Draws the same number of pictures, but only from this share of the labels."""

    def change(images: HostPixels, labels: Labels, rng: np.random.Generator) -> HostPixels:
        present = np.unique(labels)
        kept = np.isin(labels, present[: max(1, round(share * len(present)))])
        return images[rng.choice(np.flatnonzero(kept), len(images))]

    return change


def repeated(share: float) -> Change:
    """Draws the same number of pictures, but only from a random subset with this share of the pictures."""

    def change(images: HostPixels, labels: Labels, rng: np.random.Generator) -> HostPixels:
        kept = rng.choice(len(images), max(2, round(share * len(images))), replace=False)
        return images[rng.choice(kept, len(images))]

    return change


def _rounded(images: Float[np.ndarray, "..."]) -> HostPixels:
    return np.clip(np.round(images), 0, 255).astype(np.uint8)


FAMILIES: dict[str, dict[str, Change]] = {
    "noise": {f"{level} grey levels": noised(level) for level in (8, 16, 32)},
    "blur": {f"{width} pixels": blurred(width) for width in (0.4, 0.6, 0.9)},
    "pale": {f"contrast {contrast}": paled(contrast) for contrast in (0.9, 0.8, 0.6)},
    "labels missing": {f"{share:.0%} kept": of_few_labels(share) for share in (0.8, 0.5, 0.2)},
    "few distinct": {f"{share:.0%} kept": repeated(share) for share in (0.5, 0.1, 0.02)},
}
"""The changes of each family, in order of growing severity."""


def halves(config: ConfigDict) -> tuple[HostPixels, HostPixels, Labels]:
    """Returns real pictures, other real pictures, and the labels of these other pictures.

    All skin tones of an emoji are in the same set.
    """
    if config.data.dataset == "emoji":
        emoji, images = read_emoji(Path(config.data.path), config.data.image_size)
        other = np.array([is_held_out(one.base, 0.5) for one in emoji])
        return images[~other], images[other], np.array([one.group for one in emoji])[other]
    if config.data.dataset == "digits":
        images, labels = datasets.load(config, "train")
        return images[::2], images[1::2], labels[1::2]
    train, test = datasets.load_labelled(config)
    return datasets.spread(train.images, MOST_PICTURES), test.images[:MOST_PICTURES], test.labels[:MOST_PICTURES]


def available_features(config: ConfigDict) -> list[Features]:
    """Loads the classifier of the data set, if it has been trained, and the random convolutions."""
    names = ["classifier"] if classifier_path(config).exists() else []
    found = []
    for name in [*names, "random_conv"]:
        own = config.copy_and_resolve_references()
        own.eval.features = name
        found.append(load_features(own))
    return found


def moments_of(features: Features, images: HostPixels) -> Moments:
    """Computes the moments of the features of images."""
    moments = Moments(features.dim)
    for start in range(0, len(images), BATCH_SIZE):
        moments.update(np.asarray(features.extract(jnp.asarray(images[start : start + BATCH_SIZE]))))
    return moments


def distance(first: Moments, second: Moments) -> float:
    """Returns the Fréchet distance."""
    return frechet_distance(first.mean, first.cov, second.mean, second.cov)


def order(config: ConfigDict, workdir: Path, dest: Path) -> None:
    """Writes features.txt: the distances of each change, and for each family whether they grow with the severity."""
    real, other, labels = halves(config)
    networks = available_features(config)
    references = [moments_of(features, real) for features in networks]

    def distances(images: HostPixels) -> list[float]:
        pairs = zip(networks, references, strict=True)
        return [distance(reference, moments_of(features, images)) for features, reference in pairs]

    unchanged = distances(other)
    lines = [["none", "", *(f"{value:.3g}" for value in unchanged)]]
    for family, changes in FAMILIES.items():
        rng = np.random.default_rng(0)
        values = [unchanged, *(distances(change(other, labels, rng)) for change in changes.values())]
        for name, row in zip(changes, values[1:], strict=True):
            lines.append([family, name, *(f"{value:.3g}" for value in row)])
        lines.append([family, "in order", *(str(all(np.diff(column) > 0)) for column in zip(*values, strict=True))])
    header = (f"{config.data.dataset}: change", "severity", *(features.score_name for features in networks))
    counts = f"{len(other)} pictures against {len(real)} others"
    write_and_print(dest / "features.txt", f"{counts}\n\n{tables.aligned(header, lines)}")


def agree(config: ConfigDict, workdir: Path, dest: Path) -> None:
    """Writes agreement.txt: the distances of the samples of each setting on both features, and their correlation."""
    experiment = Experiment(without_scores(config, SAMPLES), workdir)
    networks = available_features(config)
    train = datasets.spread(datasets.load(config, "train").images, MOST_PICTURES)
    references = [moments_of(features, train) for features in networks]
    lines = []
    columns: Mapping[str, list[float]] = {features.score_name: [] for features in networks}
    for sampler, n_steps, t_start in tqdm(CELLS, "cells"):
        timesteps, images = experiment.draw(sampler, n_steps, seed=1, num=SAMPLES, t_start=t_start)
        for features, reference in zip(networks, references, strict=True):
            columns[features.score_name].append(distance(reference, moments_of(features, images)))
        lines.append([sampler, str(n_steps), str(timesteps[0]), *(f"{column[-1]:.3g}" for column in columns.values())])
    table = tables.aligned(("sampler", "n", "start", *columns), lines)
    correlation = scipy.stats.spearmanr(*columns.values()).statistic
    write_and_print(dest / "agreement.txt", f"{table}\n\nSpearman's rank correlation: {correlation:.3f}")


PARTS = {"order": order, "agree": agree}


if __name__ == "__main__":
    main("experiments.features", __doc__, PARTS, ("digits", "fashion_mnist", "emoji"), any_network=True)
