"""Data sets: loads the images of a split, and makes the batches for training, evaluation and statistics."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real, Shaped, UInt8
from ml_collections import ConfigDict

from core.errors import UserError
from core.files import REPOSITORY
from core.parallel import own_rows, shard_batch
from core.paths import expanded, path_field
from core.rng import image_keys
from core.shapes import HostImages, HostPixels, ImageShape, Keys, Pixels, RandomKey
from images import arrays, emoji, local, tfds_source
from images.decoded import Form, Source, fingerprint, open_split
from images.decoded import Split as Split  # public here: the return type of `load`

CUSTOM = "custom"  # the data set of the user's own images, at data.path
LATENTS = "latents"  # arrays of floats that are not images, at data.path
EMOJI = "emoji"  # the data set of the pictures of an emoji font, at data.path


def load(config: ConfigDict, split: str) -> Split:
    """The images and labels of a split, 'train' or 'test', of config.data.dataset.

    Raises UserError if the data set is unknown or has no such split, its files are missing or broken, or its images do
    not have the size and channels of the config.
    """
    data = config.data
    if data.dataset not in LOADERS:
        raise UserError(f"data.dataset={data.dataset!r} is not known; choose from {', '.join(sorted(LOADERS))}")
    images, labels = LOADERS[data.dataset](config, split)
    expected = image_shape(config)
    if images.shape[1:] != expected:
        raise UserError(
            f"{data.dataset}: the images have shape {list(images.shape[1:])}, but data.image_size and "
            f"data.num_channels require {list(expected)}"
        )
    return Split(images, labels)


def load_labelled(config: ConfigDict) -> tuple[Split, Split]:
    """A training and a test split with labels, for a classifier.

    Digits have only a training split: every fifth of its images is the test split here. Raises UserError if the data
    set has no labels.
    """
    if config.data.dataset == "digits":
        images, labels = load(config, "train")
        held_out = np.arange(len(images)) % 5 == 4
        return Split(images[~held_out], labels[~held_out]), Split(images[held_out], labels[held_out])
    train = load(config, "train")
    test = load(config, "test")
    if train.labels is None or test.labels is None:
        raise UserError(
            f"{config.data.dataset}: eval.features=classifier needs labels, and this data set has none; "
            "--config.eval.features=random_conv needs none"
        )
    return train, test


def prepare(config: ConfigDict) -> Split:
    """Downloads the data with TFDS and decodes the images, if that was not done before. Returns the training split."""
    if config.data.dataset in tfds_source.DATA_SETS and not config.data.path:
        tfds_source.prepare(config)
    return load(config, "train")


def spread(images: Shaped[np.ndarray, "images ..."], count: int) -> Shaped[np.ndarray, "count ..."]:
    """Selects `count` evenly spaced images, or all images if there are fewer.

    They are evenly spaced, because the first `count` images of a folder may all be of one class.
    """
    return images[np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)]


def image_shape(config: ConfigDict) -> ImageShape:
    """The (height, width, channels) of the config's images."""
    return config.data.image_size, config.data.image_size, config.data.num_channels


def slug(config: ConfigDict) -> str:
    """A name for the images of the config, used in the file names of their statistics and classifier.

    For the user's own images and latents, it contains a hash of the path and of the settings that select images from
    it.
    """
    data = config.data
    if data.dataset not in (CUSTOM, LATENTS):
        return f"{data.dataset}_{data.image_size}"
    settings = f"{absolute(data.path)} {data.held_out} {data.num_channels}"
    digest = hashlib.sha256(settings.encode(errors="surrogateescape")).hexdigest()
    return f"{data.dataset}-{digest[:8]}_{data.image_size}"


def absolute(path: str) -> str:
    """A path with ~ and symbolic links resolved; "" stays ""."""
    return os.path.realpath(expanded(path, "data.path")) if path else ""  # Path.resolve raises RuntimeError for a loop


def stamp(config: ConfigDict, split: str) -> str | None:
    """A hash that changes if the files of a split at data.path change; None if data.path is empty or does not exist.

    It depends on the names, sizes and modification times of the files. Picture files, known by their extension, are not
    opened, so hashing a folder of a million images takes only seconds.
    """
    path = Path(absolute(config.data.path))
    if not config.data.path or not path.exists():
        return None
    return fingerprint(_source_at(path, config, split).identity)


def _load_digits(config: ConfigDict, split: str) -> Split:
    """Scikit-learn's 1,797 digits, all in the training split; their grey levels 0..16 are scaled to 0..255."""
    from sklearn.datasets import load_digits  # imported here, because it takes a second and only digits need it

    if config.data.path:
        raise UserError("data.path is not used by digits; configs/ddpm/custom.py is for your own images")
    if split != "train":
        raise UserError("digits has no test split: all 1,797 images are for training")
    digits = load_digits()
    return Split(np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8), digits.target)


def _load_decoded(config: ConfigDict, split: str) -> Split:
    """The split of the files at data.path or, if that is empty, of TFDS's data set. The first call decodes it."""
    data = config.data
    if data.path:
        source = _source_at(_existing_path(config), config, split)
    elif data.dataset in PATH_KINDS:
        raise UserError(f"data.dataset={data.dataset} needs --config.data.path: {PATH_KINDS[data.dataset]}")
    else:
        source = tfds_source.source(config, split)
    crop = tfds_source.DATA_SETS[data.dataset].crop if data.dataset in tfds_source.DATA_SETS else 0
    form = Form(image_shape(config), crop)
    folder = REPOSITORY / path_field(config, "data.cache_dir") / slug(config)
    return open_split(source, split, form=form, folder=folder, skip_bad=data.skip_bad)


def _load_latents(config: ConfigDict, split: str) -> Split:
    """Loads a split of the .npy of floats at data.path. They are not scaled: they are in the network's range."""
    if not config.data.path:
        raise UserError(f"data.dataset={LATENTS} needs --config.data.path: {PATH_KINDS[LATENTS]}")
    latents = arrays.read_latents(_existing_path(config))
    if not config.data.held_out and split == "train":
        return Split(latents, None)
    is_test = np.array([local.is_held_out(str(i), config.data.held_out) for i in range(len(latents))], bool)
    return Split(latents[is_test == (split == "test")], None)


def is_latents(config: ConfigDict) -> bool:
    """Whether the data, and so the samples, are arrays of floats that are not images."""
    return config.data.dataset == LATENTS


def require_images(config: ConfigDict, purpose: str) -> None:
    """Raises UserError if the data are latents. purpose: what needs images; the message begins with it."""
    if is_latents(config):
        raise UserError(
            f"{purpose} needs images, and data.dataset={LATENTS} has none: draw latents with --mode=sample "
            "--format=npz, decode them, and use --mode=score with --config=configs/ddpm/custom.py and eval.reference"
        )


def _existing_path(config: ConfigDict) -> Path:
    """The path data.path with ~ expanded. Raises UserError if it does not exist."""
    path = path_field(config, "data.path")
    if not path.exists():
        from_tfds = config.data.dataset in tfds_source.DATA_SETS
        or_tfds = f"; or leave it empty and run {tfds_source.command(config)}" if from_tfds else ""
        kinds = PATH_KINDS.get(config.data.dataset, local.KINDS)
        raise UserError(f"no {path}: set --config.data.path to {kinds}{or_tfds}")
    return path


def _source_at(path: Path, config: ConfigDict, split: str) -> Source:
    """The split of the images at `path`: an emoji font, an emoji sheet, or anything that `images.local` reads."""
    data = config.data
    if emoji.is_font(path) or (data.dataset == EMOJI and emoji.is_sheet(path)):
        return emoji.source(path, split, data.held_out, data.image_size)
    return local.source(path, split, data.held_out)


PATH_KINDS = {CUSTOM: local.KINDS, EMOJI: emoji.KINDS, LATENTS: "an .npy of floats [N, height, width, channels]"}
"""What data.path may be, for the data sets that are read from data.path only."""

LOADERS = {
    "digits": _load_digits,
    **dict.fromkeys((*tfds_source.DATA_SETS, *PATH_KINDS), _load_decoded),
    LATENTS: _load_latents,
}


def train_batches(images: HostPixels, config: ConfigDict, first_step: int) -> Iterator[HostPixels]:
    """Yields shuffled batches of training.batch_size images without end, from step `first_step` on, with random flips.

    Batch k depends on config.seed and k only. Every epoch has each image once, in a new order. Each process reads only
    its own rows of a batch. Raises ValueError if a batch cannot be divided evenly among the processes.
    """
    import grain  # imported here, because it takes a quarter of a second and only training needs it

    size = config.training.batch_size
    local_rows = own_rows(size)
    flip_probability = 0.5 if config.data.random_flip else 0.0

    def fetch(indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        flipped = rng.random(len(indices)) < flip_probability
        batch = images[indices[local_rows]]
        return np.where(flipped[local_rows, None, None, None], batch[:, :, ::-1], batch)

    indices = grain.MapDataset.range(len(images)).seed(config.seed).shuffle().repeat()
    batches = indices.batch(size).random_map(fetch)
    # One thread is fast enough for all measured training steps (benchmarks/input.py). More threads would compete with
    # JAX's CPU backend.
    stream = iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)))
    stream.set_state({"next_index": first_step})
    return stream


def in_order(images: HostImages, batch_size: int) -> Iterator[tuple[HostImages, int]]:
    """Yields (batch, count) pairs that go through all images in order.

    Each process yields only its own rows of a batch. All batches have the same size. The first `count` rows are
    images; the remaining rows of the last batch are zero.
    """
    local_rows = own_rows(batch_size)
    for start in range(0, len(images), batch_size):
        batch = np.asarray(images[start + local_rows.start : start + local_rows.stop])
        missing = local_rows.stop - local_rows.start - len(batch)
        yield np.pad(batch, ((0, missing), (0, 0), (0, 0), (0, 0))), len(batch)


def keyed_batches(images: HostPixels, batch_size: int, rng: RandomKey) -> Iterator[tuple[Pixels, Keys, int]]:
    """Yields (batch on the devices, one random key per image, number of images in the batch) over all images in order.

    The key of an image depends on rng and the image's index only. batch_size must be a multiple of the device count.
    The last batch is padded after its images.
    """
    for i, (batch, _) in enumerate(in_order(images, batch_size)):
        indices = np.arange(i * batch_size, (i + 1) * batch_size, dtype=np.uint32)[own_rows(batch_size)]
        batch, indices = shard_batch((batch, indices))
        yield batch, image_keys(rng, indices), min(batch_size, len(images) - i * batch_size)


def to_network_range(pixels: Real[Array | np.ndarray, "*shape"], centered: bool) -> Float[Array | np.ndarray, "*shape"]:
    """Converts pixels 0..255 of any real dtype to float32 in [-1, 1] if centered, else in [0, 1]."""
    unit = pixels.astype(jnp.float32) / 255
    return 2 * unit - 1 if centered else unit


def to_uint8(x: Float[Array | np.ndarray, "*shape"], centered: bool) -> UInt8[Array, "*shape"]:
    """Converts images in the network's range to pixels: clips them and rounds to the nearest grey level."""
    unit = (x + 1) / 2 if centered else x
    return jnp.round(255 * jnp.clip(unit, 0, 1)).astype(jnp.uint8)
