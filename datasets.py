"""Real images in: one uint8 array [N, H, W, C] per split, and an endless shuffled stream of batches over it."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import datasets
from core.errors import UserError
from core.files import REPOSITORY
from core.parallel import own_rows, shard_batch
from core.rng import image_keys
from images import local, tfds_source
from images.decoded import Form, Split, fingerprint, open_split

__all__ = ["Split", "absolute", "image_shape", "in_order", "load", "load_labelled", "prepare", "slug", "spread"]


CUSTOM = "custom"


def load(config: ConfigDict, split: str) -> Split:
    """The 'train' or 'test' split of config.data.dataset.

    Raises UserError if the data set is unknown, its files are missing or broken, or the images are not of the size
    and channels of the config.
    """
    data = config.data
    if data.dataset not in LOADERS:
        raise UserError(f"data.dataset={data.dataset!r} is not known; choose from {', '.join(sorted(LOADERS))}")
    images, labels = LOADERS[data.dataset](config, split)
    expected = image_shape(config)
    if images.shape[1:] != expected:
        found = f"images of shape {list(images.shape[1:])}"
        raise UserError(f"{data.dataset}: found {found}, but the config asks for {list(expected)}")
    return Split(images, labels)


def load_labelled(config: ConfigDict) -> tuple[Split, Split]:
    """Images to train a classifier on and others to test it on; a data set of one split is cut four to one."""
    if config.data.dataset == "digits":
        images, labels = load(config, "train")
        held_out = np.arange(len(images)) % 5 == 4
        return Split(images[~held_out], labels[~held_out]), Split(images[held_out], labels[held_out])
    splits = load(config, "train"), load(config, "test")
    if any(split.labels is None for split in splits):
        hint = "--config.eval.enable_fid=false does without a score"
        raise UserError(f"{config.data.dataset}: classifier features need labels, and the data have none; {hint}")
    return splits


def prepare(config: ConfigDict) -> Split:
    """Does all that is slow before a first run: TFDS downloads and prepares, the training split is decoded."""
    if config.data.dataset in tfds_source.DATA_SETS and not config.data.path:
        tfds_source.prepare(config)
    return load(config, "train")


def spread(images: np.ndarray, count: int) -> np.ndarray:
    """`count` of a split's images, or all, evenly spaced: the first of a folder may be of one class."""
    return images[np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)]


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
    """(H, W, C) of the images that the config asks for."""
    return config.data.image_size, config.data.image_size, config.data.num_channels


def slug(config: ConfigDict) -> str:
    """What statistics and classifiers of these images are named by; images of one's own also by path and split."""
    data = config.data
    if data.dataset != CUSTOM:
        return f"{data.dataset}_{data.image_size}"
    question = f"{absolute(data.path)} {data.held_out} {data.num_channels}"
    return f"{CUSTOM}-{hashlib.sha256(question.encode(errors='surrogateescape')).hexdigest()[:8]}_{data.image_size}"


def absolute(path: str) -> str:
    """data.path without ~ and links; nothing where it is nothing."""
    return str(Path(path).expanduser().resolve()) if path else ""


def stamp(config: ConfigDict, split: str) -> str | None:
    """What changes with the files at data.path, by their names, sizes and times; None where none are to be found.

    No picture is opened, so a folder of a million takes seconds.
    """
    path = Path(absolute(config.data.path))
    if not config.data.path or not path.exists():
        return None
    return fingerprint(local.source(path, split, config.data.held_out).identity)


def _load_digits(config: ConfigDict, split: str) -> Split:
    """Scikit-learn's 1,797 digits, grey levels 0..16 spread over 0..255. All of them are the training split."""
    from sklearn.datasets import load_digits  # takes a second to import and only this data set needs it

    if config.data.path:
        raise UserError("data.path means nothing to digits: configs/ddpm/custom.py takes your own images")
    if split != "train":
        raise UserError("digits has no test split: all 1,797 images are for training")
    digits = load_digits()
    return Split(np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8), digits.target)


def _load_decoded(config: ConfigDict, split: str) -> Split:
    """From data.path, where it is set, else from TFDS."""
    data = config.data
    if data.path:
        source = local.source(_own_path(config), split, data.held_out)
    elif data.dataset == CUSTOM:
        raise UserError(f"data.dataset={CUSTOM} needs --config.data.path: {local.KINDS}")
    else:
        source = tfds_source.source(config, split)
    crop = tfds_source.DATA_SETS[data.dataset].crop if data.dataset in tfds_source.DATA_SETS else 0
    form = Form(image_shape(config), crop)
    return open_split(source, split, form, REPOSITORY / data.cache_dir / slug(config), data.skip_bad)


def _own_path(config: ConfigDict) -> Path:
    path = Path(config.data.path).expanduser()
    if not path.exists():
        known = config.data.dataset in tfds_source.DATA_SETS
        or_tfds = f"; or set it to nothing, and run {tfds_source.command(config)}" if known else ""
        raise UserError(f"no {path}: set --config.data.path to {local.KINDS}{or_tfds}")
    return path


LOADERS = {"digits": _load_digits} | dict.fromkeys((*tfds_source.DATA_SETS, CUSTOM), _load_decoded)


def train_batches(images: np.ndarray, config: ConfigDict, first_step: int) -> Iterator[np.ndarray]:
    """Endless uint8 batches [B, H, W, C] from step `first_step` on; batch k is a function of (seed, k) alone.

    Every epoch sees each image once, in an order of its own. A process reads only its own rows of each batch, as
    `own_rows` says, which raises ValueError where B does not divide.
    """
    import grain  # takes a quarter of a second, and only training needs it

    size = config.training.batch_size
    local = own_rows(size)

    def fetch(indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        flipped = config.data.random_flip & (rng.random(len(indices)) < 0.5)
        batch = images[indices[local]]
        return np.where(flipped[local, None, None, None], batch[:, :, ::-1], batch)

    indices = grain.MapDataset.range(len(images)).seed(config.seed).shuffle().repeat()
    batches = indices.batch(size).random_map(fetch)
    # One thread keeps ahead of any step measured here (benchmarks/input.py); more only compete with the CPU backend.
    stream = iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)))
    stream.set_state({"next_index": first_step})
    return stream


def in_order(images: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Each image exactly once: (batch, count), every batch of one size, in the last all beyond count is padding.

    A process reads only its own rows, and count is how many of them are images.
    """
    local = own_rows(batch_size)
    for start in range(0, len(images), batch_size):
        batch = np.asarray(images[start + local.start : start + local.stop])
        padding = ((0, local.stop - local.start - len(batch)), (0, 0), (0, 0), (0, 0))
        yield np.pad(batch, padding), len(batch)


def to_network_range(images: jax.Array, centered: bool) -> jax.Array:
    """Pixels 0..255 of any real dtype to float32 in [-1, 1] where centered, else [0, 1]."""
    unit = images.astype(jnp.float32) / 255
    return 2 * unit - 1 if centered else unit


def to_uint8(x: jax.Array, centered: bool) -> jax.Array:
    """The network's range back to pixels, clipped and rounded to the nearest, as images on disk are."""
    unit = (x + 1) / 2 if centered else x
    return jnp.round(255 * jnp.clip(unit, 0, 1)).astype(jnp.uint8)


def keyed_batches(images: np.ndarray, batch_size: int, rng: jax.Array) -> Iterator[tuple[jax.Array, jax.Array, int]]:
    """Real images in order, on the devices: (batch, a key for every image from its index alone, count).

    batch_size must be a multiple of the device count; what lies beyond count is padding.
    """
    for i, (batch, _) in enumerate(datasets.in_order(images, batch_size)):
        indices = np.arange(i * batch_size, (i + 1) * batch_size, dtype=np.uint32)[own_rows(batch_size)]
        batch, indices = shard_batch((batch, indices))
        yield batch, image_keys(rng, indices), min(batch_size, len(images) - i * batch_size)
