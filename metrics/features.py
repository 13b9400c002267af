"""Images to features: the networks in whose eyes samples are compared, by name."""

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

import datasets
from core import files
from core.downloads import fetch
from core.errors import UserError
from core.parallel import replicate, resharded, round_up
from models import classifier, inception

INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{INCEPTION_FILE}"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

Batches = Iterable[tuple[jax.Array, int]]  # (batch, count): all beyond count is padding


class Features(NamedTuple):
    """A feature network and what must be said beside any score made with it."""

    extract: Callable[[jax.Array], jax.Array]  # uint8 [B, H, W, C] -> [B, dim], jitted, on the devices
    dim: int
    name: str
    score_name: str
    note: str
    digest: str  # SHA-256 of its weights
    resize: str  # what it does to images before it looks at them


def load_features(config: ConfigDict, *, may_train: bool = False) -> Features:
    """The features that config.eval.features names.

    Raises UserError where they need a network that is missing, unless it may be trained, on the data set's own labels.
    """
    return FEATURES[config.eval.features](config, may_train)


def classifier_path(config: ConfigDict) -> Path:
    return files.REPOSITORY / config.assets_dir / "classifier" / f"{datasets.slug(config)}.npz"


def _classifier_features(config: ConfigDict, may_train: bool) -> Features:
    """The layer under the logits of the data set's own classifier."""
    path = classifier_path(config)
    if not path.exists():
        if not may_train:
            raise UserError(f"no {path}: run --mode=fid_stats with the same --config first")
        trained = classifier.train(*datasets.load_labelled(config), seed=0)
        classifier.save(path, trained, datasets.image_shape(config))
    stored = classifier.load(path, datasets.image_shape(config))
    graphdef, params = nnx.split(stored.network)
    extract = jax.jit(lambda params, images: nnx.merge(graphdef, params).features(images))
    return Features(
        functools.partial(extract, replicate(params)),
        classifier.FEATURES,
        "classifier",
        "FD (classifier)",
        f"classifier accuracy {stored.accuracy:.1%} on {stored.num_held_out} held-out images",
        stored.digest,
        "none",
    )


def _inception_features(config: ConfigDict, may_train: bool) -> Features:
    """The FID's own, fetched on first use, or those of eval.inception_weights."""
    path = Path(config.eval.inception_weights)
    if not config.eval.inception_weights:
        target = files.REPOSITORY / config.assets_dir / "inception" / INCEPTION_FILE
        path = fetch(INCEPTION_URL, target, INCEPTION_SHA256)
    network = inception.load_network(path)
    return Features(
        inception.features_fn(network),
        inception.FEATURES,
        "inception",
        "FID",
        f"Inception-v3, weights {path.name}",
        network.digest,
        f"bilinear to {inception.SIZE} x {inception.SIZE}, half-pixel centres, no antialiasing",
    )


FEATURES = {"classifier": _classifier_features, "inception": _inception_features}


def rebatched(batches: Batches, size: int) -> Iterator[tuple[jax.Array, int]]:
    """The same images in the same order, `size` (rounded up to the devices) at a time, split over the devices.

    They never leave the devices. The last batch is padded with zeros.
    """
    size, held, count = round_up(size), [], 0
    for batch, filled in batches:
        held.append(batch[:filled])
        count += filled
        while count >= size:
            joined = jnp.concatenate(held)
            yield resharded(joined[:size]), size
            held, count = [joined[size:]], count - size
    if count:
        joined = jnp.concatenate(held)
        padding = ((0, size - count), *((0, 0),) * (joined.ndim - 1))
        yield resharded(jnp.pad(joined, padding)), count
