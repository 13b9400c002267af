"""Diversity of generated emoji: how often skin tones and Unicode groups occur, for several numbers of steps and starts.

python -m experiments.diversity check | shares [--workdir=PATH] [--dest=PATH]

check: trains the classifiers. Tests, on real pictures with known shares of labels, whether the correction recovers the
shares.
shares: estimates the shares of labels among pictures that the network of the workdir generates, for three seeds.

A label is a Unicode group or, for people, a skin tone. The share of a label is the fraction of pictures that have it.
The emoji are divided into FOLDS folds. Classifier k is trained on all folds except k, and its confusion matrix is
measured on fold k. All skin tones of an emoji have the same base, and are in the same fold. Every classifier labels
all generated pictures, and the shares are corrected for the confusion. Classifiers are kept in WORKDIR/labels, and
tables and pictures are written to DEST.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Integer
from ml_collections import ConfigDict
from tqdm import tqdm

import datasets
from configs.runs import without_scores
from core import files, plots, tables
from core.shapes import HostPixels
from experiments.runs import Experiment, main, write_and_print
from images.emoji import GROUPS, SEVERAL, TONE_NAMES, Emoji, read_emoji, read_split
from metrics.labels import corrected_shares, entropy
from models import classifier

PEOPLE = GROUPS.index("People & Body")
OTHERS = [group for group in range(len(GROUPS)) if group != PEOPLE]
LABELS = [*(GROUPS[group] for group in OTHERS), *(f"people, {tone}" for tone in TONE_NAMES)]
FIRST_TONE = len(OTHERS) + 1  # the label of people with light skin
TONES = slice(FIRST_TONE, FIRST_TONE + SEVERAL - 1)  # the labels of people with exactly one skin tone

FOLDS = 3
TRAINING_IMAGES = 200_000  # for each classifier, repetitions included
SHIFTS = (-2, 0, 2)  # in pixels; the classifiers are trained on every picture at all shifts

SEEDS = (1, 2, 3)
SAMPLES = 1000  # number of images of each run
CELLS = [(sampler, n_steps) for sampler in ("ddim", "dpmpp_2m") for n_steps in (3, 5, 10)]
STARTS = (None, 700, 600, 500, 400, 300)  # None: pure noise
PURE_NOISE_START = 999  # the time of pure noise
REFERENCE_RUN = ("ddim", 50)
RESAMPLED = 100  # number of bootstrap samples for error bars

Shares = Float[np.ndarray, "labels"]
Predicted = Integer[np.ndarray, "classifiers images"]


# Labels


def label_of(one: Emoji) -> int:
    """Returns the index in LABELS of the label of an emoji."""
    return OTHERS.index(one.group) if one.group != PEOPLE else len(OTHERS) + one.tone


class Labelled(NamedTuple):
    """Real emoji with their labels, and the classifiers.

    Attributes:
      images: all emoji of the data set, of both splits.
      labels: indices of LABELS.
      bases: an index for each image, equal for all skin tones of an emoji.
      predicted: the label of each image by the classifier that was not trained on its fold.
      classifiers: one for each fold.
    """

    images: HostPixels
    labels: Int[np.ndarray, "images"]
    bases: Int[np.ndarray, "images"]
    predicted: Int[np.ndarray, "images"]
    classifiers: list[classifier.Network]


def load_labelled(config: ConfigDict, folder: Path) -> Labelled:
    """Trains the classifiers of the folds, or reads them from the folder, and labels all emoji of the data set."""
    emoji, images = read_emoji(Path(config.data.path), config.data.image_size)
    labels = np.array([label_of(one) for one in emoji])
    _, bases = np.unique([one.base for one in emoji], return_inverse=True)
    predicted = np.zeros(len(labels), int)
    networks = []
    for fold in range(FOLDS):
        own = bases % FOLDS == fold
        path = folder / f"fold{fold}.npz"
        if not path.exists():
            training = np.concatenate([shifted(images[~own], rows, columns) for rows in SHIFTS for columns in SHIFTS])
            repeated = np.tile(labels[~own], len(SHIFTS) ** 2)
            held_out = (images[own], labels[own])
            found = classifier.train((training, repeated), held_out, seed=fold, num_images=TRAINING_IMAGES)
            classifier.save(path, found, datasets.image_shape(config))
        networks.append(classifier.load(path, datasets.image_shape(config)).network)
        predicted[own] = classifier.predict_all(networks[-1], images[own])
    return Labelled(images, labels, bases, predicted, networks)


def shifted(images: HostPixels, rows: int, columns: int) -> HostPixels:
    """Moves the images down and to the right, and fills with white."""
    most = max(abs(rows), abs(columns))
    padded = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), constant_values=255)
    _, height, width, _ = images.shape
    return padded[:, most - rows : most - rows + height, most - columns : most - columns + width]


def predict(labelled: Labelled, images: HostPixels) -> Predicted:
    """Labels images with every classifier."""
    return np.stack([classifier.predict_all(network, images) for network in labelled.classifiers])


def confusion_of(
    labels: Int[np.ndarray, "images"], predicted: Int[np.ndarray, "images"]
) -> Float[np.ndarray, "labels labels"]:
    """Returns the shares of predicted labels (columns) for every true label (rows).

    The row of a label that no image has is zero.
    """
    counts = np.zeros((len(LABELS), len(LABELS)))
    np.add.at(counts, (labels, predicted), 1)
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def shares_of(predicted: Integer[np.ndarray, "..."]) -> Shares:
    """Returns the share of each label."""
    return np.bincount(predicted.ravel(), minlength=len(LABELS)) / predicted.size


# Diversity


class Diversity(NamedTuple):
    """How diverse pictures are, computed from the shares of LABELS.

    Attributes:
      tone_entropy: the entropy of the five skin tones, in bits, over pictures of people that show exactly one skin
        tone; at most log2(5) = 2.32.
      tone_distance: the total variation distance between the shares of these tones and those in the data.
      group_entropy: the entropy of the ten groups, in bits; at most log2(10) = 3.32.
      group_distance: the total variation distance between the shares of the groups and those in the data.
    """

    tone_entropy: float
    tone_distance: float
    group_entropy: float
    group_distance: float


def diversity(shares: Shares, data: Shares) -> Diversity:
    """Computes the diversity measures of `shares` of LABELS. `data` are the shares in the data."""
    tones, data_tones = (one[TONES] / max(one[TONES].sum(), 1e-9) for one in (shares, data))
    groups, data_groups = (np.append(one[: len(OTHERS)], one[len(OTHERS) :].sum()) for one in (shares, data))
    return Diversity(
        tone_entropy=entropy(tones),
        tone_distance=np.abs(tones - data_tones).sum() / 2,
        group_entropy=entropy(groups),
        group_distance=np.abs(groups - data_groups).sum() / 2,
    )


class Measured(NamedTuple):
    """Estimated shares of LABELS and their diversity measures, with standard errors.

    `assigned` has the shares as classified. All other values are corrected for the confusion of the classifiers.
    """

    assigned: Shares
    shares: Shares
    shares_error: Shares
    measures: Diversity
    errors: Diversity


def measure(labelled: Labelled, predicted: Predicted, data: Shares, seed: int = 0) -> Measured:
    """Estimates the shares of labels, and diversity measures, of images that the classifiers have labelled.

    The standard errors come from a bootstrap. Each round resamples the images and, for the confusion matrix, whole
    bases (an emoji with all its skin tones).
    """
    rng = np.random.default_rng(seed)
    count = predicted.shape[1]
    _, bases, sizes = np.unique(labelled.bases, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(bases, kind="stable"), np.cumsum(sizes)[:-1])

    def estimate(images: Int[np.ndarray, "images"], real: Int[np.ndarray, "real"]) -> Shares:
        confusion = confusion_of(labelled.labels[real], labelled.predicted[real])
        return corrected_shares(shares_of(predicted[:, images]), confusion)

    shares = estimate(np.arange(count), np.arange(len(labelled.labels)))
    drawn = []
    for _ in range(RESAMPLED):
        real = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        drawn.append(estimate(rng.integers(count, size=count), real))
    spread = np.std([diversity(one, data) for one in drawn], axis=0)
    return Measured(
        assigned=shares_of(predicted),
        shares=shares,
        shares_error=np.std(drawn, axis=0),
        measures=diversity(shares, data),
        errors=Diversity(*spread.tolist()),
    )


# The parts


def check(config: ConfigDict, workdir: Path, dest: Path) -> None:
    """Writes check.txt: a table of the confusion, and diversity measures of real pictures with known shares of labels.

    The pictures are drawn from one half of the bases, with the probabilities that `changed_weights` returns. The
    confusion matrix of the correction is from the other half.
    """
    labelled = load_labelled(config, workdir / "labels")
    parts = [confusion_table(labelled)]
    half = labelled.bases % 2 == 0
    known = labelled._replace(
        labels=labelled.labels[half], bases=labelled.bases[half], predicted=labelled.predicted[half]
    )
    data = shares_of(labelled.labels)
    other = np.flatnonzero(~half)
    for name, weights in changed_weights(labelled.labels[other]).items():
        drawn = np.random.default_rng(0).choice(other, SAMPLES, p=weights / weights.sum())
        true = shares_of(labelled.labels[drawn])
        found = measure(known, labelled.predicted[None, drawn], data)
        lines = [
            [field, f"{wanted:.3f}", f"{assigned:.3f}", f"{value:.3f} ± {error:.3f}"]
            for field, wanted, assigned, value, error in zip(
                Diversity._fields,
                diversity(true, data),
                diversity(found.assigned, data),
                found.measures,
                found.errors,
                strict=True,
            )
        ]
        parts.append(tables.aligned((name, "true", "as classified", "corrected"), lines))
    write_and_print(dest / "check.txt", "\n\n".join(parts))


def confusion_table(labelled: Labelled) -> str:
    """Makes a table with, for each label, the fraction classified correctly and the most frequent wrong label."""
    lines = []
    for i, (name, row) in enumerate(zip(LABELS, confusion_of(labelled.labels, labelled.predicted), strict=True)):
        count = np.count_nonzero(labelled.labels == i)
        wrong = np.where(np.arange(len(LABELS)) == i, -1, row).argmax()
        lines.append([name, str(count), f"{row[i]:.1%}", f"{LABELS[wrong]} ({row[wrong]:.1%})"])
    return tables.aligned(("label", "pictures", "recognised", "most often taken for"), lines)


def changed_weights(labels: Int[np.ndarray, "images"]) -> dict[str, Float[np.ndarray, "images"]]:
    """Returns three sets of relative probabilities of drawing each image, by name.

    In the first set, all images have the same probability. In the second set, people with one of the two darkest skin
    tones have a fifth of it. In the third set, all people have a fifth of it.
    """
    dark = (labels >= TONES.stop - 2) & (labels < TONES.stop)
    few_dark = np.where(dark, 0.2, 1.0)
    few_people = np.where(labels >= len(OTHERS), 0.2, 1.0)
    return {"the data's shares": np.ones(len(labels)), "few dark people": few_dark, "few people": few_people}


def shares(config: ConfigDict, workdir: Path, dest: Path) -> None:
    """Writes shares.csv (every run), shares.txt (means over seeds) and shares.png (distances against the start)."""
    experiment = Experiment(without_scores(config, SAMPLES), workdir)
    labelled = load_labelled(config, workdir / "labels")
    emoji, _ = read_split(Path(config.data.path), "train", config.data.held_out, config.data.image_size)
    data = shares_of(np.array([label_of(one) for one in emoji]))
    runs = []
    for sampler, n_steps in tqdm([*CELLS, REFERENCE_RUN], "cells"):
        for t_start in STARTS if (sampler, n_steps) in CELLS else (None,):
            for seed in SEEDS:
                _, images = experiment.draw(sampler, n_steps, seed=seed, num=SAMPLES, t_start=t_start)
                found = measure(labelled, predict(labelled, images), data)
                facts = {"sampler": sampler, "n_steps": n_steps, "start": t_start or PURE_NOISE_START, "seed": seed}
                runs.append(facts | row_of(found))
                text = tables.to_csv(list(runs[0]), [list(run.values()) for run in runs])
                files.write_text(dest / "shares.csv", text)  # after every run, so that it can be read before the end
    real = measure(labelled, labelled.predicted[None, :], data)
    write_and_print(dest / "shares.txt", shares_table(runs, row_of(real)))
    draw_shares(dest / "shares.png", runs)


def row_of(found: Measured) -> dict[str, float]:
    """Returns a dict from the name of each column to its value: measures and shares, and the error of each."""
    row = dict(zip(Diversity._fields, found.measures, strict=True))
    row |= zip((f"{field}_error" for field in Diversity._fields), found.errors, strict=True)
    row |= zip(LABELS, found.shares.tolist(), strict=True)
    return row | dict(zip((f"{name}, error" for name in LABELS), found.shares_error.tolist(), strict=True))


Run = Mapping[str, Any]
"""A row of shares.csv."""


def _cells(runs: Sequence[Run]) -> dict[tuple[str, int, int], list[Run]]:
    """Groups runs by sampler, n and start. A group has the runs of all seeds."""
    cells: dict[tuple[str, int, int], list[Run]] = {}
    for run in runs:
        cells.setdefault((run["sampler"], run["n_steps"], run["start"]), []).append(run)
    return cells


def shares_table(runs: Sequence[Run], real: Run) -> str:
    """Makes a table of the four diversity measures.

    The row of the real pictures has bootstrap errors. The rows of the runs have standard deviations over the seeds.
    """
    lines = [["real", "", "", *(f"{real[field]:.3f} ± {real[f'{field}_error']:.3f}" for field in Diversity._fields)]]
    for (sampler, n_steps, start), cell in _cells(runs).items():
        values = np.array([[run[field] for run in cell] for field in Diversity._fields])
        shown = map("{:.3f} ± {:.3f}".format, values.mean(axis=1), values.std(axis=1, ddof=1))
        lines.append([sampler, str(n_steps), str(start), *shown])
    header = ("sampler", "n", "start", "entropy of tones", "distance", "entropy of groups", "distance")
    return tables.aligned(header, lines)


def draw_shares(path: Path, runs: Sequence[Run]) -> None:
    """Draws the distances to the shares of the data against the start. Bars are standard deviations over the seeds."""
    cells = _cells(runs)
    names = list(dict.fromkeys(sampler for sampler, _ in CELLS))
    starts = [start or PURE_NOISE_START for start in STARTS]
    titles = {"tone_distance": "skin tones of people", "group_distance": "Unicode groups"}
    with plots.panels(path, (9, 3.2 * len(names)), len(names), 2, sharex=True, layout="constrained") as axes:
        for i, sampler in enumerate(names):
            for axis, (field, title) in zip(axes[i], titles.items(), strict=True):
                for n_steps in (n for name, n in CELLS if name == sampler):
                    values = [[run[field] for run in cells[sampler, n_steps, start]] for start in starts]
                    style = {"marker": "o", "markersize": 4, "capsize": 2, "label": f"n = {n_steps}"}
                    axis.errorbar(starts, np.mean(values, axis=1), np.std(values, axis=1, ddof=1), **style)
                reference = np.mean([run[field] for run in cells[*REFERENCE_RUN, PURE_NOISE_START]])
                label = f"{REFERENCE_RUN[0]}, n = {REFERENCE_RUN[1]}"
                axis.axhline(reference, color="0.4", linestyle="--", linewidth=1, label=label)
                axis.set(title=f"{sampler}: {title}", ylim=(0, None))
        for axis in axes[-1]:
            axis.set_xlabel(f"start ({PURE_NOISE_START}: pure noise)")
        axes[0, 0].invert_xaxis()
        axes[0, 0].legend(fontsize=8)
        axes[0, 0].figure.supylabel("total variation to the data's shares", fontsize=10)


PARTS = {"check": check, "shares": shares}


if __name__ == "__main__":
    main("experiments.diversity", __doc__, PARTS, ("emoji",))
