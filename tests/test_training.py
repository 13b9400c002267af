"""Training that is killed, stopped, cut off and resumed, with real processes, on real digits."""

import fcntl
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import checkpoints
import datasets
import losses
import run_lib
import training
from errors import Stopped, UserError
from tests import tiny

PROCESSES = multiprocessing.get_context("forkserver")
KILLS, STEPS = 12, 72


def long_config():
    config = tiny.get_config()
    config.training.update(n_iters=STEPS, eval_freq=3)
    return config


def train_in_process(config, workdir, cache):
    """What a child does: the whole program but for the flags, with a few training images as held-out ones."""
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    load = datasets.load
    datasets.load = lambda config, split: datasets.Split(load(config, "train").images[:200], None)
    try:
        run_lib.train(config, workdir)
    except Stopped as stopped:
        os._exit(128 + stopped.number)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """start(config, workdir) -> a process that trains; it is born with everything imported, which saves seconds."""
    os.environ["PYTHONPATH"] = str(datasets.REPOSITORY)
    PROCESSES.set_forkserver_preload(["run_lib"])
    cache = str(tmp_path_factory.mktemp("compiled_for_children"))

    def begin(config, workdir):
        process = PROCESSES.Process(target=train_in_process, args=(config, workdir, cache))
        process.start()
        return process

    return begin


def rows(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in found]


def last_step(workdir):
    return max((row["step"] for row in rows(workdir)), default=0)


def state_at(config, workdir, step=None):
    """Every array of the newest whole checkpoint, or of one step's."""
    _, state = losses.create_state(config)
    found = checkpoints.load(config, workdir, step or checkpoints.newest_whole(workdir), state)
    return jax.tree.map(np.asarray, found)


def wait_for(process, workdir, step):
    """Until the process has logged the step, or has ended."""
    while process.is_alive() and last_step(workdir) < step:
        time.sleep(0.002)


@pytest.fixture(scope="module")
def straight(start, tmp_path_factory):
    """A run that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("straight")
    process = start(long_config(), workdir)
    process.join()
    assert process.exitcode == 0
    return workdir


def test_killed_at_random_moments_it_ends_where_an_uninterrupted_run_does(start, straight, tmp_path):
    """Anything a kill can tear or lose: half-written checkpoints and lines, data, keys, EMA, optimiser, evaluations."""
    config, chance, moments = long_config(), random.Random(8), []
    for _ in range(KILLS):
        process = start(config, tmp_path)
        wait_for(process, tmp_path, max(checkpoints.saved_steps(tmp_path), default=0) + chance.randint(1, 8))
        time.sleep(chance.uniform(0, 0.06))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        half_written = any((tmp_path / "checkpoints").glob("*tmp*"))
        moments.append((last_step(tmp_path), half_written))
    print("killed at (step, inside a save):", moments)
    process = start(config, tmp_path)
    process.join()
    assert process.exitcode == 0
    assert rows(tmp_path) == rows(straight)
    jax.tree.map(np.testing.assert_array_equal, state_at(config, tmp_path), state_at(config, straight))
