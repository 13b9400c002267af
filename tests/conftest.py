import jax
import numpy as np
import pytest

from configs.ddpm import digits
from core.files import REPOSITORY


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """Tests build the same tiny programs again and again; each is compiled once a session."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture
def config(tmp_path):
    """Real digits and a network of one level: every mode in seconds. Statistics go to the test's own folder."""
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


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def shipped_classifier(config):
    """The classifier of the repository in the test's own assets, so that none is trained."""
    source = REPOSITORY / "assets/classifier/digits_8.npz"
    target = REPOSITORY / config.assets_dir / "classifier" / source.name
    target.parent.mkdir(parents=True)
    target.write_bytes(source.read_bytes())
