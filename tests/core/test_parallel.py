"""Runs on several virtual devices, and in several processes that communicate over sockets."""

import contextlib
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from core import files, parallel
from core.errors import UserError
from core.files import read_npz
from tests import test_bad_input

PROCESSES = multiprocessing.get_context("forkserver")

ON_DEVICES = """
import json, re
import jax, numpy as np
jax.config.update("jax_disable_most_optimizations", True)
import datasets, losses
from core import parallel
from jax.sharding import Mesh
from tests import tiny

def losses_on(devices, config, steps=4):
    parallel.mesh = lambda: Mesh(np.array(jax.devices()[:devices]), ("batch",))
    jax.device_count = lambda: devices
    graphdef, state = losses.create_state(config)
    sizes = [leaf.size for leaf in jax.tree.leaves(state.params)]
    state = losses.place(config, state)
    step = losses.make_train_step(config, graphdef)
    batches = datasets.train_batches(datasets.load(config, "train").images, config, 0)
    found = []
    step = step.lower(state, parallel.shard_batch(next(batches))).compile()
    for _ in range(steps):
        state, metrics = step(state, parallel.shard_batch(next(batches)))
        found.append([float(metrics["loss"]), float(metrics["gradient_norm"])])
    share = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves((state.ema, state.opt_state)))
    operations = re.findall(r"= (.*?) (all-[a-z-]+|reduce-scatter|collective-[a-z]+)(?:-start)?\\(", step.as_text())
    return {"losses": found, "operations": operations, "parameters": sum(sizes), "share": share}

config = tiny.get_config()
config.model.dropout = 0.1
config.data.random_flip = True
config.optim.optimizer = "Muon"  # and Adam for biases
results = {devices: losses_on(devices, config) for devices in (1, 2, 4, 8)}
config.training.shard_state = True
results["sharded"] = losses_on(8, config)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def on_devices():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", ON_DEVICES],
        env=os.environ | flags,
        cwd=files.REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("devices", ["2", "4", "8", "sharded"])
def test_losses_are_those_of_one_device(on_devices, devices):
    """Catches dropout, noise or flips drawn per device, a mean over the rows of one device, or a state not gathered."""
    np.testing.assert_allclose(on_devices[devices]["losses"], on_devices["1"]["losses"], rtol=2e-5)


@pytest.mark.parametrize("devices", ["2", "4", "8"])
def test_the_step_reduces_the_gradient_and_the_loss_and_nothing_else(on_devices, devices):
    """Catches random numbers, batches or activations that are sent between devices."""
    assert on_devices["1"]["operations"] == []
    operations = on_devices[devices]["operations"]
    assert {name for _, name in operations} == {"all-reduce"}
    assert sum(elements(shapes) for shapes, _ in operations) == on_devices[devices]["parameters"] + 1


def elements(shapes):
    """Returns the number of values in an HLO type such as (f32[3,3]{1,0}, f32[])."""
    found = re.findall(r"\w+\[([\d,]*)\]", shapes)
    return sum(int(np.prod([int(length) for length in shape.split(",") if length])) for shape in found)


def test_a_sharded_state_takes_an_eighth(on_devices):
    """Catches training.shard_state leaving most arrays replicated."""
    assert on_devices["sharded"]["share"] < 0.15 * on_devices["8"]["share"]


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize backend 'cuda':\nno GPU")])
def test_a_backend_that_does_not_start_is_one_line(monkeypatch, error):
    """Catches a traceback of JAX where the user demands a device that the machine lacks."""

    def devices():
        raise error

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(UserError, match=r"^JAX_PLATFORMS=cuda: JAX cannot start this backend here \(.*set it to cpu$"):
        parallel.require_devices()


# Several processes


def run_one(arguments, log, environment):
    os.environ.update(environment)
    jax.config.update("jax_disable_most_optimizations", True)  # compiles faster; only communication is tested
    try:
        test_bad_input.run_main(arguments, log)
    finally:  # waits for the other processes, as JAX does at the exit of Python; multiprocessing skips that exit
        jax.distributed.shutdown()


def by_flags(count):
    """Returns (flags, environment) for each of `count` processes that are configured by flags."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        together = [f"--coordinator=localhost:{free.getsockname()[1]}", f"--process_count={count}"]
    return [(["--distributed", *together, f"--process_id={index}"], {}) for index in range(count)]


def by_slurm(count):
    """Returns the same for `srun` on one machine, where JAX uses the port 61440 + SLURM_JOB_ID % 4096."""
    for job in range(os.getpid(), os.getpid() + 4096):
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("localhost", 61440 + job % 4096))
            break
    job = {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(count)}
    tasks = [{"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)} for index in range(count)]
    return [(["--distributed"], job | task) for task in tasks]


def begin(folder, count, *arguments, invite=by_flags):
    """Starts `count` processes of one run, with one device each. Their output goes to logs in the folder."""
    os.environ["PYTHONPATH"] = str(files.REPOSITORY)
    PROCESSES.set_forkserver_preload(["main", "run_lib", "sklearn.datasets"])
    folder.mkdir(parents=True, exist_ok=True)
    processes = []
    for index, (flags, environment) in enumerate(invite(count) if count > 1 else [([], {})]):
        command = ["--config=tests/tiny.py", f"--config.assets_dir={folder.parent}/assets", *arguments, *flags]
        processes.append(PROCESSES.Process(target=run_one, args=(command, folder / f"log{index}", environment)))
        processes[-1].start()
    return processes


def finish(processes, folder):
    for process in processes:
        process.join(400)
    logs = [(folder / f"log{index}").read_text() for index in range(len(processes))]
    assert [process.exitcode for process in processes] == [0] * len(processes), logs
    return logs


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses_of(workdir):
    return [[row["step"], row["loss"], row["gradient_norm"]] for row in rows(workdir)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Returns the workdir of a run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    finish(begin(folder / "logs", 1, "--mode=train", f"--workdir={folder}/run"), folder / "logs")
    return folder


def test_two_processes_train_and_score_as_one_does(alone, tmp_path):
    """Catches rows read twice or not at all, a mean of means, a file that both write, or noise drawn per process."""
    arguments = ("--mode=train", f"--workdir={tmp_path}/run")
    logs = finish(begin(tmp_path / "logs", 2, *arguments, invite=by_slurm), tmp_path / "logs")
    assert "trained to step 12" in logs[0] and "trained" not in logs[1]
    np.testing.assert_allclose(losses_of(tmp_path / "run"), losses_of(alone / "run"), rtol=2e-5)
    for folder, count in ((tmp_path, 2), (alone, 1)):
        classifier = folder / "assets/classifier"
        classifier.mkdir(parents=True)
        (classifier / "digits_8.npz").write_bytes((files.REPOSITORY / "assets/classifier/digits_8.npz").read_bytes())
        finish(begin(folder / "stats", count, "--mode=fid_stats"), folder / "stats")
        finish(
            begin(folder / "sweep", count, "--mode=sweep", f"--workdir={alone}/run", f"--eval_folder={count}"),
            folder / "sweep",
        )
    for name in ("digits_8_gaussian.npz", "digits_8_classifier.npz"):
        ours, theirs = (read_npz(folder / "assets/stats" / name, set()) for folder in (tmp_path, alone))
        for array in ("mean", "cov", "eigenvalues"):
            if array in theirs:
                np.testing.assert_allclose(ours[array], theirs[array], rtol=1e-5, atol=1e-5)
    scores = [json.loads((alone / f"run/{count}/sweep.json").read_text())["results"] for count in (1, 2)]
    for one, two in zip(*scores, strict=True):
        assert two["score"] == pytest.approx(one["score"], rel=1e-3)
        assert two["device"].startswith("2 x")


def test_when_one_of_four_is_killed_all_end_and_the_restart_goes_on(alone, tmp_path):
    """Catches processes that wait forever for a dead one, a traceback without a reason, or an incomplete checkpoint."""
    arguments = ("--mode=train", f"--workdir={tmp_path}/run")
    processes = begin(tmp_path / "logs", 4, *arguments)
    metrics = tmp_path / "run/metrics.jsonl"
    while all(process.is_alive() for process in processes) and not (
        metrics.exists() and '"step": 7' in metrics.read_text()
    ):
        time.sleep(0.01)
    os.kill(processes[2].pid, signal.SIGKILL)
    for process in processes:
        process.join(200)
    logs = [(tmp_path / f"logs/log{index}").read_text() for index in range(4)]
    codes = [processes[index].exitcode for index in (0, 1, 3)]
    assert set(codes) <= {3, -signal.SIGABRT} and 3 in codes, logs
    assert any("main.py: another process was lost; the same commands continue" in log for log in logs)
    (tmp_path / "logs/log0").unlink()
    logs = finish(begin(tmp_path / "logs", 4, *arguments), tmp_path / "logs")
    assert "trained to step 12" in logs[0]
    np.testing.assert_allclose(losses_of(tmp_path / "run"), losses_of(alone / "run"), rtol=2e-5)


def test_a_signal_to_one_of_two_ends_both_with_its_code_after_the_same_step(tmp_path):
    """Catches the exit code of another signal, a process that goes on training, and a step that only one saved."""
    workdir = tmp_path / "run"
    arguments = ("--mode=train", f"--workdir={workdir}", "--config.training.n_iters=100000")
    processes = begin(tmp_path / "logs", 2, *arguments)
    metrics = workdir / "metrics.jsonl"
    while all(process.is_alive() for process in processes) and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.01)
    os.kill(processes[1].pid, signal.SIGINT)
    for process in processes:
        process.join(200)
    logs = [(tmp_path / f"logs/log{index}").read_text() for index in range(2)]
    step = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert all(f"stopped by SIGINT after step {step}, which is saved" in log for log in logs), logs
    assert {process.exitcode for process in processes} == {130}, logs


def test_a_batch_that_does_not_divide_is_refused_up_front(tmp_path):
    """Catches a batch size that fails only after the workdir is created and the step is compiled."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    command = [sys.executable, "main.py", "--mode=train", "--config=tests/tiny.py", f"--workdir={tmp_path}/run"]
    done = subprocess.run(command, env=os.environ | flags, cwd=files.REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert "training.batch_size=8 must be a multiple of the 3 devices" in done.stderr
