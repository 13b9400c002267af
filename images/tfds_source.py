"""Prepares and reads the paper's data sets with TensorFlow Datasets (TFDS), as array_record files.

TensorFlow is needed only to prepare a data set, not to read it. TFDS is imported inside functions, because its import
takes a second.
"""

import importlib.util
import io
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict
from PIL import Image

from core.errors import UserError
from core.paths import expanded
from images.decoded import NO_LABEL, Pictures, Source
from images.pixels import open_picture

LSUN_SCENES = (
    *("bedroom", "bridge", "church_outdoor", "classroom", "conference_room"),
    *("dining_room", "kitchen", "living_room", "restaurant", "tower"),
)
LSUN_OBJECTS = (
    *("airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining_table", "dog"),
    *("horse", "motorbike", "person", "potted_plant", "sheep", "sofa", "train", "tv-monitor"),
)


class DataSet(NamedTuple):
    """How a data set is named in TFDS and how it is prepared.

    Attributes:
      builder: the name of the TFDS builder; "{size}" is replaced by the image size.
      flags: the config file and overrides with which --mode=prepare prepares the data set.
      test: TFDS's name of the test split.
      crop: the side of the centre crop, see `to_pixels`.
    """

    builder: str
    flags: str
    test: str = "test"
    crop: int = 0


DATA_SETS = {
    "mnist": DataSet("mnist", "mnist.py"),
    "fashion_mnist": DataSet("fashion_mnist", "fashion_mnist.py --config.data.path="),
    "cifar10": DataSet("cifar10", "cifar10.py"),
    "svhn": DataSet("svhn_cropped", "svhn.py"),
    "celeba": DataSet("celeb_a", "celeba.py", crop=140),
    "imagenet": DataSet("downsampled_imagenet/{size}x{size}", "imagenet{size}.py", test="validation"),
} | {
    f"lsun_{name}": DataSet(f"lsun/{name}", f"lsun.py --config.data.dataset=lsun_{name}", test="validation")
    for name in LSUN_SCENES + LSUN_OBJECTS
}


def source(config: ConfigDict, split: str) -> Source:
    """The 'train' or 'test' split of a prepared data set.

    Raises UserError if the data set is not prepared (the message has the command for that) or has no such split.
    """
    builder = _find(config)
    name = _builder_name(config)
    if builder is None:
        raise UserError(f"{name} is not prepared in {_data_dir(config)}: run {command(config)}")
    tfds_split = {"train": "train", "test": DATA_SETS[config.data.dataset].test}[split]
    if tfds_split not in builder.info.splits:
        raise UserError(f"{name} has no {split} split; TFDS has {', '.join(builder.info.splits)}")
    info = builder.info.splits[tfds_split]
    stamp = (Path(builder.data_path) / "dataset_info.json").stat().st_mtime_ns
    identity = {"folder": str(builder.data_path), "split": tfds_split, "shards": info.shard_lengths, "stamp": stamp}
    return Source(builder.info.full_name, identity, lambda: pictures(builder, tfds_split))


def pictures(builder: "tensorflow_datasets.core.DatasetBuilder", split: str) -> Pictures:
    """The pictures of a TFDS split whose features are "image" and, if the data set has classes, "label"."""
    import tensorflow_datasets as tfds

    records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})

    def open_one(i: int) -> tuple[Image.Image, int]:
        record = records[i]
        return open_picture(io.BytesIO(record["image"])), int(record.get("label", NO_LABEL))

    return Pictures(range(len(records)), open_one)


def prepare(config: ConfigDict) -> None:
    """Downloads and prepares the data set with TFDS, unless it is prepared already.

    Raises UserError if TensorFlow is not installed or TFDS fails.
    """
    if _find(config) is not None:
        return
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError("--mode=prepare needs TensorFlow, for this step only: pip install -r requirements-prepare.txt")
    import tensorflow_datasets as tfds

    name = _builder_name(config)
    try:
        builder = tfds.builder(name, data_dir=_data_dir(config))
        options = tfds.download.DownloadConfig(try_download_gcs=False)  # the copies there are not array_record files
        builder.download_and_prepare(file_format="array_record", download_config=options)
    except Exception as error:  # the code of the data set, the network and TFDS's checks raise many types
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"TFDS could not prepare {name}: {reason}") from error


def command(config: ConfigDict) -> str:
    """The command that prepares the data set of the config."""
    data = config.data
    data_dir = f" --config.data.data_dir={data.data_dir}" if data.data_dir else ""
    flags = DATA_SETS[data.dataset].flags.format(size=data.image_size)
    return f"python main.py --mode=prepare --config=configs/ddpm/{flags}{data_dir}"


def _find(config: ConfigDict) -> "tensorflow_datasets.core.DatasetBuilder | None":
    """The builder of the prepared data set, or None. Raises UserError if its files are not array_record files."""
    from tensorflow_datasets.core import file_adapters, read_only_builder, registered

    name, _, kind = _builder_name(config).partition("/")
    options = {"config": kind} if kind else {}
    try:
        builder = read_only_builder.builder_from_files(name, data_dir=_data_dir(config), **options)
    except registered.DatasetNotFoundError:
        return None
    readable = file_adapters.FileFormat.with_random_access() & builder.info.available_file_formats()
    if not readable:
        raise UserError(
            f"{builder.data_path} holds {builder.info.file_format.value} files, which only TensorFlow reads; "
            "--mode=prepare writes array_record files to another --config.data.data_dir"
        )
    return builder


def _builder_name(config: ConfigDict) -> str:
    data = config.data
    if data.dataset == "imagenet" and data.image_size not in (32, 64):
        raise UserError(f"data.image_size={data.image_size}: the downsampled ImageNet exists only in sizes 32 and 64")
    return DATA_SETS[data.dataset].builder.format(size=data.image_size)


def _data_dir(config: ConfigDict) -> str:
    """The folder of TFDS: data.data_dir if set, else the environment variable TFDS_DATA_DIR, else TFDS's default."""
    from tensorflow_datasets.core import constants

    return str(expanded(config.data.data_dir or constants.DATA_DIR, "data.data_dir or TFDS_DATA_DIR"))
