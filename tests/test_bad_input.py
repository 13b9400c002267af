"""Wrong inputs in every mode end with an exit code that is not 0 and one line about the error, and change no file."""

import ctypes
import gzip
import multiprocessing
import os
import pickle
import shutil
import sys

import numpy as np
import pytest
from absl import logging

import run_lib
from core import files
from tests import tiny
from tests.training.test_checkpoints import contents, truncate

PROCESSES = multiprocessing.get_context("forkserver")
TINY = "--config=tests/tiny.py --config.assets_dir={w}/assets"
TRAIN = f"--mode=train {TINY} --workdir={{w}}/new"
AGAIN = f"--mode=train {TINY} --workdir={{w}}/run"
STATS = f"--mode=fid_stats {TINY}"
EVAL = f"--mode=eval {TINY} --workdir={{w}}/run"
LATE = f"{EVAL} --gls --t_start=300"
SWEEP = f"--mode=sweep {TINY} --workdir={{w}}/run"
SAMPLE = f"--mode=sample {TINY} --workdir={{w}}/run"
IMPORT = f"--mode=import {TINY} --workdir={{w}}/new"
EXPORT = f"--mode=export {TINY} --workdir={{w}}/run --dest={{w}}/out"
OWN = f"{TRAIN} --config.data.cache_dir={{w}}_decoded"
IDX = f"{OWN} --config.data.dataset=mnist --config.data.image_size=28 --config.data.path={{w}}"
NPY = f"{OWN} --config.data.dataset=custom --config.data.num_channels=3 --config.data.path={{w}}"
TFDS = f"{OWN} --config.data.dataset=cifar10 --config.data.num_channels=3 --config.data.data_dir={{w}}"

WRONG_AT_ONCE = {  # found before slow imports
    # flags
    f"--mode=tarin {TINY}": "should be one of",
    f"{TRAIN} --num=abc": "num",
    f"{TRAIN} --no_such_flag=1": "no_such_flag",
    f"{TRAIN} --num=3": "--num is not used by --mode=train",
    f"{TRAIN} --gls": "--gls is not used by --mode=train",
    f"{STATS} --seed=3": "--seed is not used by --mode=fid_stats",
    f"{SWEEP} --n_steps=3": "--n_steps is not used by --mode=sweep",
    f"{SAMPLE} --format=gif": "should be one of",
    f"{SAMPLE} --compare --sampler=ddim": "and nothing else",
    f"{SAMPLE} --compare --format=npz": "and nothing else",
    f"--mode=export {TINY} --workdir={{w}}/run": "needs --dest",
    f"{SAMPLE} --distributed": "--distributed is not used by --mode=sample",
    f"{TRAIN} --coordinator=localhost:1": "go together, with --distributed",
    f"{TRAIN} --distributed --process_count=2": "go together, with --distributed",
    f"{TRAIN} --distributed --coordinator=nowhere --process_count=2 --process_id=0": "must be host:port",
    f"{TRAIN} --distributed --coordinator=h:1 --process_count=2 --process_id=2": "must be below --process_count=2",
    f"{TRAIN} --distributed --coordinator=h:1 --process_count=0 --process_id=0": "process_count",
    f"{TRAIN} --distributed": "--distributed: ",
    # components
    f"{LATE} --config.sampling.components=many": "it must be '1', 'labels', or a number of clusters",
    f"{LATE} --config.sampling.components=0": "it must be '1', 'labels', or a number of clusters",
    f"{LATE} --config.sampling.classes=(3,)": "needs sampling.components='labels'",
    f"{SWEEP} --config.sweep.components=('1','x')": "it must be a list of 0 or more, each '1', 'labels'",
    f"{EVAL} --gls --config.sampling.baseline=leading": "does not take --gls",
    f"{EVAL} --n_steps=1 --config.sampling.baseline=leading": "it would start at t = 0",
    # places that are not on this machine, and unknown home folders
    f"--mode=train {TINY} --workdir=gs://bucket/run": "--workdir=gs://bucket/run is a URL",
    f"{EVAL} --eval_folder=s3://bucket/eval": "--eval_folder=s3://bucket/eval is a URL",
    f"{EXPORT} --dest=hdfs://host/x": "--dest=hdfs://host/x is a URL",
    f"{IMPORT} --source=https://host/x.pth": "--source=https://host/x.pth is a URL",
    f"--mode=score {TINY} --source={{w}} --reference=file:///x": "--reference=file:///x is a URL",
    "--mode=train --config=gs://bucket/x.py --workdir={w}/new": "--config=gs://bucket/x.py is a URL",
    f"{TRAIN} --config.data.path=gs://bucket": "data.path=gs://bucket is a URL",
    f"{TRAIN} --workdir=~no-such-user/x": "the home folder ~no-such-user is not known",
    f"{EVAL} --config.assets_dir=~no-such-user/x": "the home folder ~no-such-user is not known",
    f"{TRAIN} --distributed --coordinator=tcp://h:1 --process_count=2 --process_id=0": "must be host:port",
    # config files
    "--mode=train --config={w}/run --workdir={w}/new": "directory",
    "--mode=train --config={w}/broken.py --workdir={w}/new": "invalid syntax",
    "--mode=train --config={w}/empty.py --workdir={w}/new": "get_config",
    "--mode=train --config={w}/raising.py --workdir={w}/new": "no luck",
    "--mode=train --config={w}/run/config.json --workdir={w}/new": "is not defined",
    # types and ranges of fields
    f"{TRAIN} --config.training.batch_size=0": "at least 1",
    f"{TRAIN} --config.training.batch_size=1.5": "1.5",
    f"{TRAIN} --config.training.n_iters=-1": "at least 1",
    f"{TRAIN} --config.training.max_to_keep=0": "at least 1",
    f"{TRAIN} --config.training.shard_state=perhaps": "perhaps",
    f"{TRAIN} --config.training.snapshot_freq=0": "at least 1",
    f"{TRAIN} --config.optim.lr=inf": "above 0",
    f"{TRAIN} --config.optim.lr=-1e-3": "above 0",
    f"{TRAIN} --config.optim.optimizer=SGD": "one of Adam",
    f"{TRAIN} --config.optim.schedule=linear": "one of constant, cosine",
    f"{TRAIN} --config.model.dropout=1": "from 0 up to",
    f"{TRAIN} --config.model.ema_rate=2": "from 0 up to",
    f"{TRAIN} --config.model.ch_mult=()": "a list of 1 or more",
    f"{TRAIN} --config.model.ch_mult=(1,1,1,1,1)": "multiple of 16",
    f"{TRAIN} --config.model.beta_max=5000": "between 0 and 1",
    f"{TRAIN} --config.model.nonlinearity=tanh": "one of swish",
    f"{TRAIN} --config.training=3": "training",
    f"{TRAIN} --config.seed=-1": "seed=-1",
    f"{EVAL} --config.eval.features=vgg": "one of",
    f"{EVAL} --config.eval.checkpoint=-2": "at least -1",
    f"{EVAL} --n_steps=0": "at least 1",
    f"{EVAL} --n_steps=1001": "at most 1000",
    f"{EVAL} --config.sampling.spacing=random": "one of linear",
    f"{EVAL} --config.sampling.baseline=no_history": "needs --gls",
    f"{LATE} --config.sampling.baseline=no_history --sampler=ddim": "has no effect on ddim with n_steps=2: dpmpp",
    f"{LATE} --config.sampling.baseline=no_history --sampler=unipc_2 --n_steps=3": "unipc_2 from 4",
    f"{EVAL} --config.sampling.baseline=afs --sampler=ode": "ode is adaptive",
    f"{LATE} --config.sampling.baseline=afs": "is a start from pure noise: it does not take --gls",
    f"{EVAL} --gls --t_start=-1": "must be a whole number, or auto",
    f"{EVAL} --gls --t_start=soon": "must be a whole number, or auto",
    f"{EVAL} --gls --t_start=auto --sampler=ode": "ode is adaptive",
    f"{EVAL} --config.sampling.spacing=auto --n_steps=16": "at most 15",
    f"{EVAL} --gls --t_start=0 --n_steps=1": "from 1 to 999, or auto; images at t = 0 are almost clean",
    f"{SWEEP} --config.sweep.t_starts=(0,300)": "each a time of at least 1",
    f"{SWEEP} --config.sweep.samplers=('euler',)": "each one of ddpm",
    f"{SWEEP} --config.sweep.samplers=(['ddim'],)": "each one of ddpm",
    f"{SWEEP} --config.sweep.t_starts=('1:99999999999999:1',)": "each a time of at least 1",
    "--mode=train --config={w}/sections.py --workdir={w}/new": "the config has no field",
}
WRONG = {
    # requirements of single modes
    f"{EVAL} --config.eval.num_samples=1": "at least 2",
    f"{SWEEP} --config.eval.enable_fid=false": "needs eval.enable_fid",
    f"{SWEEP} --config.sampling.baseline=afs": "a sweep takes sweep.baselines",
    f"{AGAIN} --config.optim.optimizer=Muon": "is trained by optim.optimizer=Adam, not Muon",
    f"--mode=analyze {TINY} --workdir={{w}}/run --config.analysis.n_steps=1000": "at most 999, the last time",
    f"{EXPORT}.pth": "ends in .npz, or a folder",
    f"--mode=score {TINY} --workdir={{w}}_score --source={{w}}/one.npz": "one.npz: holds one image",
    f"--mode=score {TINY} --workdir={{w}}/empty.py --source={{w}}/one.npz": "empty.py",
    f"--mode=train {TINY} --workdir={{w}}/null_config": "model=None in the config stored there",
    # files: missing, cut, of another kind, hostile
    f"{EVAL} --config.eval.checkpoint=5": "no checkpoint of step 5",
    f"{EVAL} --config.model.num_res_blocks=2": "model.num_res_blocks is 2, there 1",
    f"{AGAIN} --config.model.nf=64": "model.nf is 64, there 32",
    f"{AGAIN} --config.data.centered=false": "data.centered is False, there True",
    f"--mode=eval {TINY} --workdir={{w}}/nowhere": "no checkpoint in",
    f"--mode=eval {TINY} --workdir={{w}}/empty.py": "no checkpoint in",
    f"--mode=train {TINY} --workdir={{w}}/empty.py": "empty.py",
    f"--mode=eval {TINY} --workdir={{w}}/no_config": "config.json: cannot be read",
    f"--mode=train {TINY} --workdir={{w}}/bad_config": "cannot be read as JSON",
    f"--mode=train {TINY} --workdir={{w}}/list_config": "expected a JSON object, found list",
    f"--mode=train {TINY} --workdir={{w}}/deep_config": "cannot be read as JSON",
    f"--mode=train {TINY} --workdir={{w}}/bad_metrics": "a line that training did not write",
    f"--mode=train {TINY} --workdir={{w}}/latin_metrics": "a line that training did not write",
    f"--mode=train {TINY} --workdir={{w}}/damaged": "is whole",
    f"--mode=eval {TINY} --workdir={{w}}/damaged": "is whole",
    f"--mode=export {TINY} --workdir={{w}}/damaged --dest={{w}}/out": "is whole",
    f"{EVAL} --config.assets_dir={{w}}/nothing": "run --mode=fid_stats",
    f"{EVAL} --config.assets_dir={{w}}/cut_assets": "not a readable .npz file",
    f"{EVAL} --config.assets_dir={{w}}/pickled_assets": "not a readable .npz file",
    f"{LATE} --config.assets_dir={{w}}/other_assets": "lacks",
    f"{LATE} --config.assets_dir={{w}}/nan_assets": "NaN",
    f"{LATE} --config.assets_dir={{w}}/mnist_assets": "its dataset is mnist, this config's digits: run --mode",
    f"{LATE} --config.assets_dir={{w}}/range_assets": "its centered is False, this config's True: run --mode",
    f"{LATE} --config.assets_dir={{w}}/silent_assets": "does not say which images it was made of: run --mode=fid_stats",
    f"{STATS} --config.assets_dir={{w}}/cut_assets": "not a readable .npz file",
    f"{IMPORT} --source={{w}}/nothing.pth": "nothing.pth",
    f"{IMPORT} --source=~/nothing.pth": f"{os.path.expanduser('~')}/nothing.pth",
    f"{IMPORT} --source={{w}}/hostile.pth": "hostile.pth",
    f"{IMPORT} --source={{w}}/cut.pth": "cut.pth",
    f"{IMPORT} --source=tests/data/torch_zip.pth": "torch_zip.pth",
    f"{IMPORT} --source={{w}}/assets": "assets holds no config.json",
    f"{IMPORT} --source={{w}}/page.pth": "page.pth is a text that begins with '<!DOCTYPE html>",
    f"{IMPORT} --source={{w}}/page.npz": "page.npz is a text that begins with '<!DOCTYPE html>",
    f"{IMPORT} --source={{w}}/nothing.npz": "nothing.npz is empty",
    f"--mode=import {TINY} --workdir={{w}}/run --source={{w}}/cut.pth": "holds checkpoints already",
    f"--mode=export {TINY} --workdir={{w}}/run --dest={{w}}/assets": "exists already",
    f"{EXPORT} --config.model.resamp_with_conv=false": "model.resamp_with_conv",
    f"{TRAIN} --config.training.eval_freq=2": "digits has no test split",
    f"{IDX}/nothing": "nothing: set --config.data.path",
    f"{IDX}/cut_idx": "cut or broken",
    f"{IDX}/other_idx": "not an IDX file",
    f"{IDX}/cut_gz": "cannot be read",
    f"{IDX}/mixed_idx": "do not match",
    f"{NPY}/nothing": "nothing",
    f"{TFDS}/nothing": "--mode=prepare",
    f"{NPY}/cut_npy/train.npy": "not a readable .npy file",
    f"{NPY}/pickled_npy/train.npy": "not a readable .npy file",
    f"{NPY}/float_npy/train.npy": "found float32",
    f"{NPY}/empty_npy/train.npy": "holds no images",
    f"{NPY}/one_npy/train.npy": "uint8 [48, 64, 3], which looks like one picture",
    f"--mode=score {TINY} --workdir={{w}}_score --source={{w}}/empty.py": "unsupported file type",
    # places that cannot be written
    f"--mode=train {TINY} --workdir=/proc/run": "/proc/run",
    f"--mode=train {TINY} --workdir=/dev/full": "/dev/full",
    f"{EXPORT.replace('{w}/out', '/proc/out')}": "/proc",
}
WRONG_PICTURES = {  # found while all pictures are decoded, with a progress bar
    f"{NPY}/phone": "HEIC is not read; convert it to PNG or JPEG",
    f"--mode=score {TINY} --workdir={{w}}_score --source={{w}}/phone": "1 of 1 pictures cannot be used",
}

NEEDS_RIGHTS = {  # places without permission to write
    AGAIN: "ermission denied",
    TRAIN: "ermission denied",
    STATS: "ermission denied",
    EXPORT: "ermission denied",
}


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Makes a finished run with statistics, and wrong files of every kind."""
    w = tmp_path_factory.mktemp("world")
    config = tiny.get_config()
    config.assets_dir = str(w / "assets")
    config.training.update(n_iters=2, snapshot_freq=2)
    (w / "assets").mkdir()
    shutil.copytree(files.REPOSITORY / "assets/classifier", w / "assets/classifier")
    run_lib.train(config, w / "run")
    run_lib.fid_stats(config)

    for name, text in {
        "broken": "def",
        "empty": "",
        "sections": "from ml_collections import ConfigDict\nget_config = lambda: ConfigDict({'sampling': {}})",
        "raising": "def get_config():\n    raise RuntimeError('no luck')",
    }.items():
        (w / f"{name}.py").write_text(text)
    make_workdirs(w)
    make_assets(w)
    make_data(w)
    for name in ("page.pth", "page.npz"):
        (w / name).write_text("<!DOCTYPE html><title>Google Drive - Virus scan warning</title>")
    (w / "nothing.npz").touch()
    with (w / "hostile.pth").open("wb") as file:
        pickle.dump(Hostile(), file, protocol=2)
    shutil.copy("tests/data/torch_zip.pth", w / "cut.pth")
    truncate(w / "cut.pth")
    return w


def make_workdirs(w):
    for name in ("no_config", "bad_config", "list_config", "deep_config", "null_config"):
        shutil.copytree(w / "run", w / name)
    for name in ("bad_metrics", "latin_metrics", "damaged"):
        shutil.copytree(w / "run", w / name)
    (w / "no_config/config.json").unlink()
    (w / "bad_config/config.json").write_bytes(b"\xff{")
    (w / "list_config/config.json").write_text("[1]")
    (w / "deep_config/config.json").write_text("[" * 10**5)
    (w / "null_config/config.json").write_text('{"model": null}')
    (w / "latin_metrics/metrics.jsonl").write_bytes(b'{"step": 1, "name": "\xe9"}\n')
    (w / "bad_metrics/metrics.jsonl").write_text('{"step": 1}\n[]\n{"step": 2}\n')
    for step in (w / "damaged/checkpoints").iterdir():
        truncate(step / "ema/_METADATA")
        truncate(step / "train/_METADATA")


def make_assets(w):
    for name in ("cut", "pickled", "other", "nan", "mnist", "range", "silent"):
        shutil.copytree(w / "assets", w / f"{name}_assets")
    for path in (w / "cut_assets").rglob("*.npz"):
        truncate(path)
    np.savez(
        w / "pickled_assets/stats/digits_8_classifier.npz", mean=np.array([Hostile()]), cov=1, count=1, features=""
    )
    np.savez(w / "other_assets/stats/digits_8_gaussian.npz", mean=np.zeros(64))
    with np.load(w / "assets/stats/digits_8_gaussian.npz") as arrays:
        origin = str(arrays["origin"])
        for name, changed in {
            "nan": {"mean": np.full(64, np.nan)},
            "mnist": {"origin": origin.replace("digits", "mnist")},
            "range": {"origin": origin.replace("true", "false")},
        }.items():
            np.savez(w / f"{name}_assets/stats/digits_8_gaussian.npz", **{**arrays, **changed})
        silent = {name: array for name, array in arrays.items() if name != "origin"}
        np.savez(w / "silent_assets/stats/digits_8_gaussian.npz", **silent)


def make_data(w):
    def idx(shape):
        return bytes([0, 0, 8, len(shape)]) + np.array(shape, ">i4").tobytes() + bytes(int(np.prod(shape)))

    def make(folder, images, labels, ending=""):
        (w / folder).mkdir()
        (w / folder / f"train-images-idx3-ubyte{ending}").write_bytes(images)
        (w / folder / f"train-labels-idx1-ubyte{ending}").write_bytes(labels)

    make("cut_idx", idx((3, 28, 28))[:-1], idx((3,)))
    make("other_idx", b"GIF89a..........", idx((3,)))
    make("cut_gz", gzip.compress(idx((3, 28, 28)))[:-9], idx((3,)), ".gz")
    make("mixed_idx", idx((3, 28, 28)), idx((4,)))
    arrays = {
        "cut_npy": np.zeros((4, 8, 8, 3), np.uint8),
        "pickled_npy": np.array([Hostile()]),
        "float_npy": np.zeros((4, 8, 8, 3), np.float32),
        "empty_npy": np.zeros((0, 8, 8, 3), np.uint8),
        "one_npy": np.zeros((48, 64, 3), np.uint8),
    }
    (w / "phone").mkdir()
    (w / "phone/1.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    np.savez(w / "one.npz", images=np.zeros((1, 8, 8, 1), np.uint8))
    for folder, array in arrays.items():
        (w / folder).mkdir()
        np.save(w / folder / "train.npy", array)
    truncate(w / "cut_npy/train.npy")


def run_main(arguments, log, rights=True, at_once=False):
    """What a child does: the whole program, if so told without root's rights to read and write everything, or without
    the room that imports all others."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if not rights:
        version_3 = (ctypes.c_uint32 * 2)(0x20080522, 0)
        none = (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset(version_3, none) == 0
    if at_once:
        sys.modules["run_lib"] = None  # importing it raises ImportError
    import main

    logging.set_verbosity(logging.FATAL)  # as main.py does when it is run as the program
    sys.argv = ["main.py", *arguments]  # ml_collections reads overrides from here
    main.main(sys.argv)


def fails_in_one_line(arguments, says, log, pictures=False, **how):
    """Checks the exit code and output of `run_main` in a child process, which has all slow modules imported already."""
    os.environ["PYTHONPATH"] = str(files.REPOSITORY)
    PROCESSES.set_forkserver_preload(["main", "run_lib", "sklearn.datasets"])
    process = PROCESSES.Process(target=run_main, args=(arguments, log), kwargs=how)
    process.start()
    process.join(60)
    said = log.read_text()
    assert process.exitcode == 2, said
    assert says in said
    if pictures:
        said = said[said.index("main.py: ") :]  # after the progress bar of the pictures
    assert said.startswith("main.py: ") and said.count("\n") == 1


def ends_in_one_line(arguments, says, world, tmp_path, **how):
    before = contents(world)
    fails_in_one_line(arguments.format(w=world).split(), says, tmp_path / "log", **how)
    assert contents(world) == before
    assert not os.path.exists("executed")


@pytest.mark.parametrize("arguments", WRONG_AT_ONCE)
def test_wrong_flags_and_fields_are_told_before_long_imports(arguments, world, tmp_path):
    """Catches a mistake that is reported only after seconds, or with a wrong message."""
    ends_in_one_line(arguments, WRONG_AT_ONCE[arguments], world, tmp_path, at_once=True)


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_input_ends_in_one_line_and_touches_nothing(arguments, world, tmp_path):
    """Catches a traceback, a second line, exit code 0, or a changed file of the user."""
    ends_in_one_line(arguments, WRONG[arguments], world, tmp_path)


@pytest.fixture
def read_only(world):
    kept = {path: path.stat().st_mode for path in (world, *world.rglob("*"))}
    for path, mode in kept.items():
        path.chmod(mode & ~0o222)
    yield world
    for path, mode in kept.items():
        path.chmod(mode)


@pytest.mark.parametrize("arguments", WRONG_PICTURES)
def test_unusable_pictures_end_in_one_line_and_touch_nothing(arguments, world, tmp_path):
    """Catches the same for mistakes that are found by decoding pictures."""
    ends_in_one_line(arguments, WRONG_PICTURES[arguments], world, tmp_path, pictures=True)


@pytest.mark.parametrize("arguments", NEEDS_RIGHTS)
def test_without_rights_it_ends_in_one_line(arguments, read_only, tmp_path):
    """Catches a traceback for a folder that cannot be written or read."""
    ends_in_one_line(arguments, NEEDS_RIGHTS[arguments], read_only, tmp_path, rights=False)


def test_there_are_enough_of_them():
    """Catches a table of cases that has become short."""
    assert len(WRONG_AT_ONCE) + len(WRONG) + len(NEEDS_RIGHTS) >= 90
