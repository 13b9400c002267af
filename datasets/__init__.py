"""Real images in: one uint8 array [N, H, W, C] per split, and an endless shuffled stream of batches over it."""

import hashlib
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from datasets import own, prepared
from datasets.decoded import Form, Split, fingerprint, open_split
from datasets.stream import in_order, to_network_range, to_uint8, train_batches
from errors import UserError

__all__ = ["Split", "absolute", "image_shape", "in_order", "load", "load_labelled", "prepare", "slug", "spread"]
__all__ += ["stamp", "to_network_range", "to_uint8", "train_batches"]

REPOSITORY = Path(__file__).parents[1]
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
    if config.data.dataset in prepared.DATA_SETS and not config.data.path:
        prepared.prepare(config)
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
    return fingerprint(own.source(path, split, config.data.held_out).identity)


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
        source = own.source(_own_path(config), split, data.held_out)
    elif data.dataset == CUSTOM:
        raise UserError(f"data.dataset={CUSTOM} needs --config.data.path: {own.KINDS}")
    else:
        source = prepared.source(config, split)
    crop = prepared.DATA_SETS[data.dataset].crop if data.dataset in prepared.DATA_SETS else 0
    form = Form(image_shape(config), crop)
    return open_split(source, split, form, REPOSITORY / data.cache_dir / slug(config), data.skip_bad)


def _own_path(config: ConfigDict) -> Path:
    path = Path(config.data.path).expanduser()
    if not path.exists():
        known = config.data.dataset in prepared.DATA_SETS
        or_tfds = f"; or set it to nothing, and run {prepared.command(config)}" if known else ""
        raise UserError(f"no {path}: set --config.data.path to {own.KINDS}{or_tfds}")
    return path


LOADERS = {"digits": _load_digits} | dict.fromkeys((*prepared.DATA_SETS, CUSTOM), _load_decoded)
