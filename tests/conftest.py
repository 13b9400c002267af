import os
import shutil

import jax
import numpy as np
import pytest

from configs.ddpm import digits
from core.compilation_cache import folder_of_this_cpu
from core.files import REPOSITORY

MAX_BYTES_KEPT = 2**28


def pytest_configure():
    """Keeps compiled programs on disk, because many tests of this and later sessions use the same programs."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return  # set by the user or by the parent process
    programs = folder_of_this_cpu() / "tests"
    if programs.exists() and sum(path.stat().st_size for path in programs.iterdir()) > MAX_BYTES_KEPT:
        shutil.rmtree(programs)
    settings = {"jax_compilation_cache_dir": str(programs), "jax_persistent_cache_min_compile_time_secs": 0}
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    # A test that kills a process may leave an incomplete program file. JAX then compiles the program again.
    os.environ["PYTHONWARNINGS"] = "ignore:Error reading persistent compilation cache"


@pytest.fixture
def config(tmp_path):
    """Returns a config for digits with a network of one level. Every mode takes seconds, in the test's folder."""
    config = digits.get_config()
    config.assets_dir = str(tmp_path / "assets")
    config.data.cache_dir = str(tmp_path / "decoded")
    config.training.update(batch_size=8, n_iters=6, log_freq=1, snapshot_freq=6, snapshot_freq_for_preemption=3)
    config.training.sampling_size = 4
    config.model.update(ch_mult=(1,), attn_resolutions=(), dropout=0.1)
    config.optim.warmup = 2
    config.sampling.n_steps = 2
    config.eval.update(num_samples=10, batch_size=6)
    config.sweep.update(samplers=("ddim", "pndm"), n_steps=(2,), t_starts=(300, 500))
    return config


@pytest.fixture(scope="session")
def train_once(tmp_path_factory):
    """Returns train_once(config, workdir), which trains a workdir. A config is trained only once per session."""
    import run_lib  # takes seconds, and many tests do not need it
    from training import checkpoints

    finished = {}

    def train(config, workdir):
        settings = config.copy_and_resolve_references()
        settings.assets_dir = settings.data.cache_dir = ""  # the test's own folders
        key = settings.to_json()
        if key not in finished:
            folder = tmp_path_factory.mktemp("trained") / "run"
            run_lib.train(config, folder)
            finished[key] = folder
        shutil.copytree(finished[key], workdir)
        checkpoints.write_config(config, workdir)
        return workdir

    return train


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def shipped_classifier(config):
    """Copies the repository's classifier to the test's assets, so that no classifier is trained."""
    source = REPOSITORY / "assets/classifier/digits_8.npz"
    target = REPOSITORY / config.assets_dir / "classifier" / source.name
    target.parent.mkdir(parents=True)
    target.write_bytes(source.read_bytes())
