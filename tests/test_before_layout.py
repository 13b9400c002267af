"""Files of an earlier version can still be read: workdirs, statistics, results and weights (tests/data)."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import run_lib
from core import files
from evaluation import EvalRun, load_context
from metrics import results, statistics
from models.weights import fill, read_weights
from tests.data.before_layout.config import get_config
from training import checkpoints

STORED = files.REPOSITORY / "tests/data/before_layout"


@pytest.fixture
def before(tmp_path, shipped_classifier, config):
    """Returns the stored config and a copy of the stored workdir, whose assets have statistics and the classifier."""
    stored = get_config()
    stored.assets_dir = config.assets_dir
    shutil.copytree(STORED / "assets", Path(stored.assets_dir), dirs_exist_ok=True)
    shutil.copytree(STORED / "run", tmp_path / "run")
    return stored, tmp_path / "run"


def test_checkpoint_holds_the_weights_that_were_exported(before):
    """Catches a renamed parameter or item of a checkpoint, or an .npz that is read in another order."""
    config, workdir = before
    step, _, ema = checkpoints.load_ema(config, workdir)
    exported = STORED / "exported.npz"
    jax.tree.map(np.testing.assert_array_equal, ema, fill(exported, config, read_weights(exported).arrays))
    assert step == 4


def test_training_goes_on(before):
    """Catches a train state, for example of the optimiser, with other shapes or names."""
    config, workdir = before
    config.training.update(n_iters=6, snapshot_freq=6)
    run_lib.train(config, workdir)
    assert checkpoints.saved_steps(workdir)[-1] == 6


def test_finished_runs_are_not_drawn_again(before, monkeypatch):
    """Catches a renamed setting or folder, which would make a sweep of hours start again."""
    config, workdir = before
    monkeypatch.setattr(run_lib.evaluation, "generate", lambda *_, **__: pytest.fail("a finished run is drawn again"))
    results = run_lib.sweep(config, workdir)
    stored = files.read_json(STORED / "run/eval/sweep.json")["results"]
    assert [result["score"] for result in results] == [result["score"] for result in stored]


def test_same_settings_give_the_same_scores_and_images(before):
    """Catches a random key, a default or a statistic that has changed."""
    config, workdir = before
    config.sampling.update(sampler="ddim", n_steps=2, gls=True, t_start=300)
    result = run_lib.evaluate(config, workdir, "again")
    stored = files.read_json(STORED / "run/eval/ddim_n2_gls300_step4_num30_seed42/result.json")
    assert set(stored) <= result.keys()
    assert result["score"] == pytest.approx(stored["score"], rel=1e-5)
    assert result["weights_sha256"] == stored["weights_sha256"]


def test_runs_with_the_former_history_are_drawn_again(before):
    """Catches the reuse of a score from the former history, which was not added to the network's prediction."""
    config, workdir = before
    config.sampling.update(sampler="unipc_3", n_steps=4, gls=True, t_start=400)
    run = EvalRun(config, load_context(config, workdir, [config]))
    stored = files.read_json(STORED / "run/eval/unipc_3_n4_gls400_step4_num30_seed42/result.json")
    assert results.finished(run.settings, STORED / "run/eval") is None
    assert {name for name in run.settings if run.settings[name] != stored[name]} == {"history"}


def test_statistics_are_read(before):
    """Catches a changed name or version in the origin of statistics."""
    config, _ = before
    assert statistics.load_gaussian(config).image_shape == (8, 8, 1)
