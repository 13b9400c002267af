"""TFDS's own code: reading array_record files without TensorFlow, and, where it is installed, preparing them."""

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
    """SVHN's config, which finds the generated data set under that name."""
    monkeypatch.setitem(tfds_source.DATA_SETS, "svhn", GENERATED)
    config = svhn.get_config()
    config.data.update(data_dir=str(STORED), image_size=16, cache_dir=str(tmp_path / "decoded"))
    return config


def assert_generated(split, name):
    """Every image once, of whatever order, with its own label; 20x16 pixels are cropped to the centre's 16x16."""
    expected = {tfds_generated.image(name, i)[2:18].tobytes(): i % 4 for i in range(tfds_generated.COUNTS[name])}
    found = {image.tobytes(): label for image, label in zip(*split, strict=True)}
    assert found == expected and len(split.images) == len(expected)


@pytest.mark.parametrize("name", tfds_generated.COUNTS)
def test_prepared_images_are_read(config, name):
    """Images lost between shards, labels of other images, a second encoding that loses."""
    assert_generated(datasets.load(config, name), name)


def test_default_folder_is_tfdss(config, monkeypatch):
    """TFDS_DATA_DIR passed over (TFDS reads it into this constant)."""
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(STORED))
    config.data.data_dir = ""
    assert len(datasets.load(config, "test").images) == 7


def test_missing_data_name_the_one_command(config, tmp_path):
    config.data.data_dir = str(tmp_path)
    message = f"generated is not prepared in {tmp_path}: run python main.py --mode=prepare "
    with pytest.raises(UserError, match=f"{message}--config=configs/ddpm/svhn.py --config.data.data_dir={tmp_path}$"):
        datasets.load(config, "train")


@pytest.mark.parametrize("name", tfds_source.DATA_SETS)
def test_command_of_every_data_set_is_its_own(name):
    """A command that prepares another data set, or names a config that is not there."""
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


def test_files_that_only_tensorflow_reads_are_named(config, tmp_path):
    """NotImplementedError of TFDS, a page long."""
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


def test_split_that_tfds_lacks(config, monkeypatch):
    monkeypatch.setitem(tfds_source.DATA_SETS, "svhn", GENERATED._replace(test="validation"))
    with pytest.raises(UserError, match="generated has no test split; TFDS has"):
        datasets.load(config, "test")


def test_imagenet_of_another_size_is_one_line(config):
    config.data.update(dataset="imagenet", image_size=48)
    with pytest.raises(UserError, match="data.image_size=48: the downsampled ImageNet has 32 and 64"):
        datasets.load(config, "train")


def test_preparing_without_tensorflow_says_what_to_install(config, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config.data.data_dir = str(tmp_path)
    with pytest.raises(UserError, match="pip install -r requirements-prepare.txt"):
        datasets.prepare(config)


def test_what_is_prepared_needs_no_tensorflow_to_decode(config, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert len(datasets.prepare(config).images) == 30


COMMAND = """
import sys
import main
from datasets import prepared
prepared.DATA_SETS["svhn"] = prepared.DataSet("generated", "svhn.py")
preparing = "--mode=prepare" in sys.argv
if preparing:
    from tests import tfds_generated
main.main(sys.argv)
imported = "tensorflow" in sys.modules
sys.exit(0 if imported == preparing else f"tensorflow imported: {imported}")
"""


def run(data_dir, tmp_path, *flags):
    """One command of main.py on the generated data set, in a process of its own that says if it saw TensorFlow."""
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
    """Seconds of import and a GPU's memory gone; also that TFDS_DATA_DIR is honoured."""
    workdir, statistics = tmp_path / "run", "--config.eval.enable_fid=false"
    assert "trained to step 2" in run(STORED, tmp_path, "--mode=train", f"--workdir={workdir}", *TINY)
    printed = run(STORED, tmp_path, "--mode=fid_stats", statistics, f"--config.assets_dir={tmp_path}")
    assert "the Gaussian of 30 images" in printed


@needs_tensorflow
def test_a_data_set_is_really_prepared_and_read_back(tmp_path, config):
    """Another file format, a download from Google, TensorFlow still needed afterwards."""
    assert "30 training images" in run(tmp_path / "tfds", tmp_path, "--mode=prepare")
    config.data.data_dir = str(tmp_path / "tfds")
    for name in tfds_generated.COUNTS:
        assert_generated(datasets.load(config, name), name)


@needs_tensorflow
def test_failed_preparation_is_one_line(config, tmp_path, monkeypatch):
    """No network, a moved file, a quota: what TFDS raises is no traceback here."""

    def fail(self, split):
        raise ConnectionError("no network\nand more")

    monkeypatch.setattr(tfds_generated.Generated, "_generate_examples", fail)
    config.data.data_dir = str(tmp_path)
    with pytest.raises(UserError, match="TFDS could not prepare generated: .*no network") as error:
        datasets.prepare(config)
    assert "\n" not in str(error.value)


@needs_tensorflow
@pytest.mark.parametrize("name", tfds_source.DATA_SETS)
def test_every_data_set_has_the_features_that_are_read(name):
    """A misspelt builder or class, images under another name, CelebA's crop beyond its border."""
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
