"""Real images in: one uint8 array [N, H, W, C] per split, and an endless shuffled stream of batches over it."""

import gzip
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from errors import UserError
from parallel import own_rows

REPOSITORY = Path(__file__).parent


class Split(NamedTuple):
    images: np.ndarray  # uint8 [N, H, W, C]
    labels: np.ndarray | None  # int [N], where the data set has them


def load(config: ConfigDict, split: str) -> Split:
    """The 'train' or 'test' split of config.data.dataset.

    Raises UserError if the data set is unknown, its files are missing or broken, or the images are not of the size
    and channels of the config.
    """
    data = config.data
    if data.dataset not in LOADERS:
        raise UserError(f"data.dataset={data.dataset!r} is not known; choose from {', '.join(sorted(LOADERS))}")
    images, labels = LOADERS[data.dataset](config, split)
    expected = (data.image_size, data.image_size, data.num_channels)
    if images.dtype != np.uint8 or images.shape[1:] != expected:
        found = f"{images.dtype} images of shape {list(images.shape[1:])}"
        raise UserError(f"{data.dataset}: found {found}, but the config asks for uint8 {list(expected)}")
    if len(images) == 0:
        raise UserError(f"{data.dataset}: the {split} split holds no images")
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


def _load_digits(config: ConfigDict, split: str) -> Split:
    """Scikit-learn's 1,797 digits, grey levels 0..16 spread over 0..255. All of them are the training split."""
    from sklearn.datasets import load_digits  # takes a second to import and only this data set needs it

    if split != "train":
        raise UserError("digits has no test split: all 1,797 images are for training")
    digits = load_digits()
    return Split(np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8), digits.target)


IDX_NAMES = {"train": "train", "test": "t10k"}


def _load_idx(config: ConfigDict, split: str) -> Split:
    """The four files of MNIST and its kin (http://yann.lecun.com/exdb/mnist), plain or gzipped."""
    folder = REPOSITORY / config.data.data_dir
    images = _read_idx(folder, f"{IDX_NAMES[split]}-images-idx3-ubyte")
    labels = _read_idx(folder, f"{IDX_NAMES[split]}-labels-idx1-ubyte")
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise UserError(f"{folder}: {split} images {list(images.shape)} and labels {list(labels.shape)} do not match")
    return Split(images[..., None], labels.astype(np.int64))


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """An IDX file of bytes: two zeros, type 8, the rank, the sizes as big-endian int32, then the values."""
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)
    if path is None:
        hint = "(Debian's package dataset-fashion-mnist installs Fashion-MNIST's)"
        raise UserError(f"no {name}[.gz] in {folder}: set --config.data.data_dir to the folder of the IDX files {hint}")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, gzip.zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise UserError(f"{path}: not an IDX file of bytes")
    rank = content[3]
    shape = np.frombuffer(content, ">i4", rank, offset=4).tolist()
    if len(content) - 4 - 4 * rank != math.prod(shape):
        raise UserError(f"{path}: {len(content)} bytes do not hold an array of shape {shape}: it is cut or broken")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _load_arrays(config: ConfigDict, split: str) -> Split:
    """A decoded split: data_dir/<dataset>_<size>/<split>.npy, mapped into memory, never read whole."""
    data = config.data
    path = REPOSITORY / data.data_dir / f"{data.dataset}_{data.image_size}" / f"{split}.npy"
    if not path.exists():
        shape = f"[N, {data.image_size}, {data.image_size}, {data.num_channels}]"
        raise UserError(f"no images of {data.dataset}: put a uint8 array {shape} at {path}, or set data.data_dir")
    try:
        return Split(np.load(path, mmap_mode="r", allow_pickle=False), None)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not a readable .npy file ({error})") from error


LOADERS = {
    "digits": _load_digits,
    "fashion_mnist": _load_idx,
    "mnist": _load_idx,
    "cifar10": _load_arrays,
    "celeba": _load_arrays,
    "imagenet": _load_arrays,
}


def train_batches(images: np.ndarray, config: ConfigDict, first_step: int) -> Iterator[np.ndarray]:
    """Endless uint8 batches [B, H, W, C] from step `first_step` on; batch k is a function of (seed, k) alone.

    Every epoch sees each image once, in an order of its own. A process reads only its own rows of each batch.
    """
    own = own_rows(config.training.batch_size)

    def fetch(indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        flipped = config.data.random_flip & (rng.random(len(indices)) < 0.5)[own]
        batch = images[indices[own]]
        return np.where(flipped[:, None, None, None], batch[:, :, ::-1], batch)

    indices = grain.MapDataset.range(len(images)).seed(config.seed).shuffle().repeat()
    batches = indices.batch(config.training.batch_size).random_map(fetch)
    # One thread keeps ahead of any step measured here (1 ms a batch); more only compete with the CPU backend.
    stream = iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))
    stream.set_state({"next_index": first_step})
    return stream


def in_order(images: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Each image exactly once: (batch, count), every batch of one size, in the last all beyond count is padding.

    A process reads only its own rows, and count is how many of them are images.
    """
    own = own_rows(batch_size)
    for start in range(0, len(images), batch_size):
        batch = np.asarray(images[start + own.start : start + own.stop])
        padding = ((0, own.stop - own.start - len(batch)), (0, 0), (0, 0), (0, 0))
        yield np.pad(batch, padding), len(batch)


def to_network_range(images: jax.Array, centered: bool) -> jax.Array:
    """Pixels 0..255 of any real dtype to float32 in [-1, 1] where centered, else [0, 1]."""
    unit = images.astype(jnp.float32) / 255
    return 2 * unit - 1 if centered else unit


def to_uint8(x: jax.Array, centered: bool) -> jax.Array:
    """The network's range back to pixels, clipped and rounded to the nearest, as images on disk are."""
    unit = (x + 1) / 2 if centered else x
    return jnp.round(255 * jnp.clip(unit, 0, 1)).astype(jnp.uint8)
