"""The paper's data sets through TensorFlow Datasets (TFDS): array_record files, prepared once, read without TensorFlow.

Only `prepare` needs TensorFlow. TFDS itself is imported late: it takes a second.
"""

import importlib.util
import io
import os
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict
from PIL import Image

from core.errors import UserError
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
    builder: str  # TFDS's name for it
    flags: str  # the config file and overrides that --mode=prepare takes for it
    test: str = "test"  # TFDS's name for the test split
    crop: int = 0  # see to_pixels


DATA_SETS = {
    "mnist": DataSet("mnist", "mnist.py"),
    "fashion_mnist": DataSet("fashion_mnist", "fashion_mnist.py --config.data.path="),
    "cifar10": DataSet("cifar10", "cifar10.py"),
    "svhn": DataSet("svhn_cropped", "svhn.py"),
    "celeba": DataSet("celeb_a", "celeba.py", crop=140),
    "imagenet": DataSet("downsampled_imagenet/{size}x{size}", "imagenet{size}.py", "validation"),
} | {
    f"lsun_{name}": DataSet(f"lsun/{name}", f"lsun.py --config.data.dataset=lsun_{name}", "validation")
    for name in LSUN_SCENES + LSUN_OBJECTS
}


def source(config: ConfigDict, split: str) -> Source:
    """A split as TFDS has prepared it. Raises UserError where it has not, with the command that does."""
    builder, name = _find(config), _builder_name(config)
    if builder is None:
        raise UserError(f"{name} is not prepared in {_data_dir(config)}: run {command(config)}")
    tfds_split = {"train": "train", "test": DATA_SETS[config.data.dataset].test}[split]
    if tfds_split not in builder.info.splits:
        raise UserError(f"{name} has no {split} split; TFDS has {', '.join(builder.info.splits)}")
    info = builder.info.splits[tfds_split]
    stamp = (Path(builder.data_path) / "dataset_info.json").stat().st_mtime_ns
    identity = {"folder": str(builder.data_path), "split": tfds_split, "shards": info.shard_lengths, "stamp": stamp}
    return Source(builder.info.full_name, identity, lambda: pictures(builder, tfds_split))


def pictures(builder, split: str) -> Pictures:
    """Of a TFDS builder whose features have an image and perhaps a label."""
    import tensorflow_datasets as tfds

    records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})

    def open_one(i: int) -> tuple[Image.Image, int]:
        record = records[i]
        return open_picture(io.BytesIO(record["image"])), int(record.get("label", NO_LABEL))

    return Pictures(range(len(records)), open_one)


def prepare(config: ConfigDict) -> None:
    """Downloads and prepares what is not there yet, with TFDS's progress bars. Raises UserError where that fails."""
    if _find(config) is not None:
        return
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError("--mode=prepare needs TensorFlow, for this step alone: pip install -r requirements-prepare.txt")
    import tensorflow_datasets as tfds

    name = _builder_name(config)
    try:
        builder = tfds.builder(name, data_dir=_data_dir(config))
        fresh = tfds.download.DownloadConfig(try_download_gcs=False)  # what lies there is no array_record
        builder.download_and_prepare(file_format="array_record", download_config=fresh)
    except Exception as error:  # each data set's own code, the network and TFDS's checks raise any kind
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"TFDS could not prepare {name}: {reason}") from error


def command(config: ConfigDict) -> str:
    """What the user has to run for this data set."""
    data = config.data
    where = f" --config.data.data_dir={data.data_dir}" if data.data_dir else ""
    flags = DATA_SETS[data.dataset].flags.format(size=data.image_size)
    return f"python main.py --mode=prepare --config=configs/ddpm/{flags}{where}"


def _find(config: ConfigDict):
    """The builder of the prepared data set, or None. Raises UserError where it is not in array_record form."""
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
            "--mode=prepare makes array_record files in another --config.data.data_dir"
        )
    return builder


def _builder_name(config: ConfigDict) -> str:
    data = config.data
    if data.dataset == "imagenet" and data.image_size not in (32, 64):
        raise UserError(f"data.image_size={data.image_size}: the downsampled ImageNet has 32 and 64")
    return DATA_SETS[data.dataset].builder.format(size=data.image_size)


def _data_dir(config: ConfigDict) -> str:
    """data.data_dir, else TFDS_DATA_DIR, else TFDS's own default."""
    from tensorflow_datasets.core import constants

    return os.path.expanduser(config.data.data_dir or constants.DATA_DIR)
