"""Feature extractors for the metrics, by name."""

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

import datasets
from core import files
from core.downloads import fetch
from core.errors import UserError
from core.parallel import replicate, resharded, round_up
from core.paths import path_field
from core.shapes import Pixels
from models import classifier, inception, random_conv

INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{INCEPTION_FILE}"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

Batches = Iterable[tuple[UInt8[Array | np.ndarray, "..."], int]]
"""Pairs (batch, count); rows after the first `count` are padding."""


class Features(NamedTuple):
    """A feature network, and its properties that a score depends on.

    Attributes:
      extract: a jitted function from uint8 images on the devices to features of shape [batch, dim].
      dim: the number of features.
      name: the value of eval.features that selects the network.
      score_name: the name of the Fréchet distance on these features.
      note: one line about the weights, printed with every score.
      digest: the SHA-256 of the weights.
      resize: how the network resizes images.
    """

    extract: Callable[[Pixels], Float[Array, "batch dim"]]
    dim: int
    name: str
    score_name: str
    note: str
    digest: str
    resize: str


def load_features(config: ConfigDict, *, may_train: bool = False) -> Features:
    """The feature network that config.eval.features names.

    may_train: whether a missing classifier is trained on the labels of the data set. Raises UserError if the network is
    missing and cannot be trained or downloaded.
    """
    return FEATURES[config.eval.features](config, may_train)


def classifier_path(config: ConfigDict) -> Path:
    """The file of the classifier that was trained on the data set."""
    return files.REPOSITORY / path_field(config, "assets_dir") / "classifier" / f"{datasets.slug(config)}.npz"


def _classifier_features(config: ConfigDict, may_train: bool) -> Features:
    """The inputs of the last layer of the classifier that was trained on the data set."""
    path = classifier_path(config)
    shape = datasets.image_shape(config)
    if not path.exists():
        if not may_train:
            raise UserError(f"no {path}: run --mode=fid_stats with the same --config first")
        trained = classifier.train(*datasets.load_labelled(config), seed=0)
        classifier.save(path, trained, shape)
    stored = classifier.load(path, shape)
    graphdef, params = nnx.split(stored.network)
    extract = jax.jit(lambda params, images: nnx.merge(graphdef, params).features(images))
    return Features(
        extract=functools.partial(extract, replicate(params)),
        dim=classifier.FEATURES,
        name="classifier",
        score_name="FD (classifier)",
        note=f"classifier accuracy {stored.accuracy:.1%} on {stored.num_held_out} held-out images",
        digest=stored.digest,
        resize="none",
    )


def _inception_features(config: ConfigDict, may_train: bool) -> Features:
    """The FID's Inception-v3, from eval.inception_weights or from the published file, which is downloaded once."""
    path = path_field(config, "eval.inception_weights")
    if not config.eval.inception_weights:
        target = files.REPOSITORY / path_field(config, "assets_dir") / "inception" / INCEPTION_FILE
        path = fetch(INCEPTION_URL, target, INCEPTION_SHA256)
    network = inception.load(path)
    return Features(
        extract=network,
        dim=inception.FEATURES,
        name="inception",
        score_name="FID",
        note=f"Inception-v3, weights {path.name}",
        digest=network.digest,
        resize=f"bilinear to {inception.SIZE} x {inception.SIZE}, half-pixel centres, no antialiasing",
    )


def _random_conv_features(config: ConfigDict, may_train: bool) -> Features:
    """An untrained network with fixed weights, for data without labels."""
    kernels = random_conv.kernels()
    return Features(
        extract=functools.partial(jax.jit(random_conv.features), replicate(kernels)),
        dim=random_conv.FEATURES,
        name="random_conv",
        score_name="FD (random convolutions)",
        note=f"{random_conv.LAYERS} random convolutions, seed {random_conv.SEED}",
        digest=random_conv.digest(kernels),
        resize="none",
    )


FEATURES = {
    "classifier": _classifier_features,
    "inception": _inception_features,
    "random_conv": _random_conv_features,
}


def rebatched(batches: Batches, size: int) -> Iterator[tuple[UInt8[Array, "..."], int]]:
    """Yields the same images in the same order, in batches of `size`, rounded up to a multiple of the device count.

    The images stay on the devices, each batch is split over the devices, and the last batch is padded with zeros.
    """
    size = round_up(size)
    held = []
    count = 0
    for batch, filled in batches:
        held.append(batch[:filled])
        count += filled
        while count >= size:
            joined = jnp.concatenate(held)
            yield resharded(joined[:size]), size
            held = [joined[size:]]
            count -= size
    if count:
        joined = jnp.concatenate(held)
        padding = [(0, size - count)] + [(0, 0)] * (joined.ndim - 1)
        yield resharded(jnp.pad(joined, padding)), count
