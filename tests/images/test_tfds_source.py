"""Reading TFDS's array_record files without TensorFlow, and preparing them if TensorFlow is installed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import datasets
from configs.ddpm import svhn
from core import files
from core.errors import UserError
from images import tfds_source
from images.decoded import NO_LABEL
from images.pixels import to_pixels
from tests import tfds_generated

STORED = Path(__file__).parents[1] / "data/tfds"
GENERATED = tfds_source.DataSet("generated", "svhn.py")
needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="needs pip install -r requirements-prepare.txt"
)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Returns the config of SVHN, in which the name svhn stands for the generated data set."""
    monkeypatch.setitem(tfds_source.DATA_SETS, "svhn", GENERATED)
    config = svhn.get_config()
    config.data.update(data_dir=str(STORED), image_size=16, cache_dir=str(tmp_path / "decoded"))
    return config


def assert_generated(split, name):
    """Checks that the split has every image once with its label, in any order, cropped from 20x16 to 16x16."""
    expected = {tfds_generated.image(name, i)[2:18].tobytes(): i % 4 for i in range(tfds_generated.COUNTS[name])}
    found = {image.tobytes(): label for image, label in zip(*split, strict=True)}
    assert found == expected and len(split.images) == len(expected)


@pytest.mark.parametrize("name", tfds_generated.COUNTS)
def test_prepared_images_are_read(config, name):
    """Catches images lost between shards, labels of other images, and a lossy second encoding."""
    assert_generated(datasets.load(config, name), name)


def test_default_folder_is_that_of_tfds(config, monkeypatch):
    """Catches an ignored TFDS_DATA_DIR, which TFDS reads into this constant."""
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(STORED))
    config.data.data_dir = ""
    assert len(datasets.load(config, "test").images) == 7


def test_error_about_missing_data_has_the_command(config, tmp_path):
    """Catches a message without the command, or without the data_dir of the config in it."""
    config.data.data_dir = str(tmp_path)
    message = f"generated is not prepared in {tmp_path}: run python main.py --mode=prepare "
    with pytest.raises(UserError, match=f"{message}--config=configs/ddpm/svhn.py --config.data.data_dir={tmp_path}$"):
        datasets.load(config, "train")


@pytest.mark.parametrize("name", tfds_source.DATA_SETS)
def test_command_of_every_data_set_prepares_that_data_set(name):
    """Catches a command that prepares another data set, or names a config file that does not exist."""
    config = svhn.get_config()
    config.data.dataset = name
    path, *overrides = tfds_source.command(config).split("--config=")[1].split()
    spec = importlib.util.spec_from_file_location("named", files.REPOSITORY / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    named = module.get_config()
    for override in overrides:
        field, value = override.removeprefix("--config.data.").split("=")
        named.data[field] = value
    assert named.data.dataset == name and named.data.path == ""


def test_files_that_only_tensorflow_reads_are_an_error(config, tmp_path):
    """Catches the NotImplementedError of TFDS, whose text is a page long."""
    folder = tmp_path / "generated/1.0.0"
    folder.mkdir(parents=True)
    stored = STORED / "generated/1.0.0"
    (folder / "features.json").write_bytes((stored / "features.json").read_bytes())
    info = (stored / "dataset_info.json").read_text()
    (folder / "dataset_info.json").write_text(info.replace("array_record", "tfrecord"))
    for split in tfds_generated.COUNTS:
        (folder / f"generated-{split}.tfrecord-00000-of-00001").touch()
    config.data.data_dir = str(tmp_path)
    for call in (lambda: datasets.load(config, "train"), lambda: datasets.prepare(config)):
        with pytest.raises(UserError, match="1.0.0 holds tfrecord files, which only TensorFlow reads"):
            call()


def test_missing_split_is_an_error(config, monkeypatch):
    """Catches a KeyError of TFDS without the names of the splits."""
    monkeypatch.setitem(tfds_source.DATA_SETS, "svhn", GENERATED._replace(test="validation"))
    with pytest.raises(UserError, match="generated has no test split; TFDS has"):
        datasets.load(config, "test")


def test_imagenet_of_another_size_is_an_error(config):
    """Catches a builder name that TFDS does not have."""
    config.data.update(dataset="imagenet", image_size=48)
    with pytest.raises(UserError, match="data.image_size=48: the downsampled ImageNet exists only in sizes 32 and 64"):
        datasets.load(config, "train")


def test_preparing_without_tensorflow_is_an_error(config, tmp_path, monkeypatch):
    """Catches an ImportError in place of the command that installs TensorFlow."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config.data.data_dir = str(tmp_path)
    with pytest.raises(UserError, match="pip install -r requirements-prepare.txt"):
        datasets.prepare(config)


def test_decoding_a_prepared_data_set_needs_no_tensorflow(config, monkeypatch):
    """Catches a --mode=prepare that needs TensorFlow although the data are prepared already."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert len(datasets.prepare(config).images) == 30


COMMAND = """
import sys
import main
from images import tfds_source
tfds_source.DATA_SETS["svhn"] = tfds_source.DataSet("generated", "svhn.py")
preparing = "--mode=prepare" in sys.argv
if preparing:
    from tests import tfds_generated
main.main(sys.argv)
imported = "tensorflow" in sys.modules
sys.exit(0 if imported == preparing else f"tensorflow imported: {imported}")
"""


def run(data_dir, tmp_path, *flags):
    """Runs main.py on the generated data set in a new process; only --mode=prepare may import TensorFlow."""
    config = ("--config=configs/ddpm/svhn.py", "--config.data.image_size=8", f"--config.data.cache_dir={tmp_path}/dec")
    process = subprocess.run(
        [sys.executable, "-c", COMMAND, *config, *flags],
        env=os.environ | {"TFDS_DATA_DIR": str(data_dir)},
        cwd=files.REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


TINY = (
    *("--config.model.nf=32", "--config.model.ch_mult=(1,)", "--config.model.attn_resolutions=()"),
    *("--config.model.num_res_blocks=1", "--config.training.batch_size=4", "--config.training.n_iters=2"),
    *("--config.training.snapshot_sampling=false",),
)


def test_training_and_statistics_never_import_tensorflow(tmp_path):
    """Catches an import of TensorFlow, which takes seconds and GPU memory, and an ignored TFDS_DATA_DIR."""
    workdir = tmp_path / "run"
    assert "trained to step 2" in run(STORED, tmp_path, "--mode=train", f"--workdir={workdir}", *TINY)
    printed = run(
        STORED, tmp_path, "--mode=fid_stats", "--config.eval.enable_fid=false", f"--config.assets_dir={tmp_path}"
    )
    assert "Gaussian of 30 images" in printed


@needs_tensorflow
def test_prepared_data_set_is_read_back(tmp_path, config):
    """Catches a wrong file format, a download from Google, and data that can only be read with TensorFlow."""
    assert "30 training images" in run(tmp_path / "tfds", tmp_path, "--mode=prepare")
    config.data.data_dir = str(tmp_path / "tfds")
    for name in tfds_generated.COUNTS:
        assert_generated(datasets.load(config, name), name)


@needs_tensorflow
def test_failed_preparation_is_an_error_of_one_line(config, tmp_path, monkeypatch):
    """Catches a traceback of TFDS if the network is down, a file has moved or a quota is used up."""

    def fail(self, split):
        raise ConnectionError("no network\nand more")

    monkeypatch.setattr(tfds_generated.Generated, "_generate_examples", fail)
    config.data.data_dir = str(tmp_path)
    with pytest.raises(UserError, match="TFDS could not prepare generated: .*no network") as error:
        datasets.prepare(config)
    assert "\n" not in str(error.value)


@needs_tensorflow
@pytest.mark.parametrize("name", tfds_source.DATA_SETS)
def test_every_data_set_has_an_image_and_its_labels(name):
    """Catches a misspelt builder or class, images under another name, and a crop larger than CelebA's images."""
    import tensorflow_datasets as tfds

    entry = tfds_source.DATA_SETS[name]
    with tfds.testing.mock_data(num_examples=3):
        pictures = tfds_source.pictures(tfds.builder(entry.builder.format(size=64)), "train")
        assert len(pictures.names) == 3
        picture, label = pictures.open(2)
        assert to_pixels(picture, (64, 64, 3), entry.crop).shape == (64, 64, 3)
        assert (label == NO_LABEL) == (name not in ("mnist", "fashion_mnist", "cifar10", "svhn"))
        if name == "celeba":
            assert picture.size == (178, 218)
