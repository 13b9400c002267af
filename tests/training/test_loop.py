"""Training on digits that is killed, stopped and resumed, with real signals and processes."""

import functools
import itertools
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tqdm
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from orbax.checkpoint.path import atomicity

import datasets
import losses
import run_lib
from core import files
from core.errors import Stopped, UserError
from tests import tiny
from tests.training.test_checkpoints import contents, flip_a_bit, truncate
from training import checkpoints, loop

PROCESSES = multiprocessing.get_context("forkserver")
KILLS = 10
STEPS = 60


def long_config():
    config = tiny.get_config()
    config.training.update(n_iters=STEPS, eval_freq=3)
    return config


def train_in_process(config, workdir, trap):
    """Runs run_lib.train in a child process, with 200 training images as the held-out images and without output."""
    trap()
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    load = datasets.load
    datasets.load = lambda config, split: datasets.Split(load(config, "train").images[:200], None)
    try:
        run_lib.train(config, workdir)
    except Stopped as stopped:
        os._exit(128 + stopped.number)


def no_trap():
    pass


def kill_inside(owner, name, call):
    """Kills the process at the beginning of the given call of a function. Calls are counted from 1."""
    function = getattr(owner, name)
    calls = itertools.count(1)

    def deadly(*args, **options):
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)

    setattr(owner, name, deadly)


def kill_inside_an_evaluation():
    """Kills the process in the fourth evaluation, after two of its 17 batches."""
    kill_inside(losses, "eval_loss", 3 * 17 + 3)


def kill_inside_a_save():
    """Kills the process in the second save, when one of its three items is complete and another is being renamed."""
    kill_inside(atomicity.AtomicRenameTemporaryPath, "finalize", 4 + 2)


@pytest.fixture(scope="module")
def start():
    """Returns start(config, workdir), which starts a child process that trains. Its modules are already imported.

    The child first calls `trap`, which may make it kill itself at some point.
    """
    os.environ["PYTHONPATH"] = str(files.REPOSITORY)
    PROCESSES.set_forkserver_preload(["run_lib", "sklearn.datasets"])

    def begin(config, workdir, trap=no_trap):
        process = PROCESSES.Process(target=train_in_process, args=(config, workdir, trap))
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


def state_at(config, workdir):
    """Returns all arrays of the newest intact checkpoint."""
    _, state = losses.create_state(config)
    found = checkpoints.load(config, workdir, checkpoints.newest_whole(workdir), state)
    return jax.tree.map(np.asarray, found)


def saves_begun(workdir):
    return {path.stat().st_ino for path in (workdir / "checkpoints").glob("*tmp*")}


@pytest.fixture(scope="module")
def straight(start, tmp_path_factory):
    """Returns the workdir of a run without interruption."""
    workdir = tmp_path_factory.mktemp("straight")
    process = start(long_config(), workdir)
    process.join()
    assert process.exitcode == 0
    return workdir


def test_kills_at_random_moments_do_not_change_the_result(start, straight, tmp_path):
    """Catches everything that a kill can damage or lose.

    These are checkpoints, lines of metrics, the position in the data, keys, EMA, optimiser and evaluations.
    """
    config = long_config()
    chance = random.Random(8)
    moments = []
    path = tmp_path / "metrics.jsonl"
    for _ in range(KILLS):
        inode = path.stat().st_ino if path.exists() else None
        old_saves = saves_begun(tmp_path)
        found = max(checkpoints.saved_steps(tmp_path), default=0)
        process = start(config, tmp_path)
        while process.is_alive() and not (path.exists() and path.stat().st_ino != inode):
            time.sleep(0.002)  # waits until the process has resumed from its checkpoint
        target = found + chance.randint(2, 13)
        while process.is_alive() and last_step(tmp_path) < target:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        process.join()
        saving = bool(saves_begun(tmp_path) - old_saves)
        assert process.exitcode == -signal.SIGKILL
        moments.append((last_step(tmp_path), saving))
    print("killed at (step, inside a save):", moments)
    process = start(config, tmp_path)
    process.join()
    assert process.exitcode == 0
    assert rows(tmp_path) == rows(straight)
    same_state(config, tmp_path, straight)


def test_kills_inside_an_evaluation_and_a_save_do_not_change_the_result(start, straight, tmp_path):
    """Catches the same at the two most critical moments, which random moments may miss."""
    config = long_config()

    def killed(trap):
        process = start(config, tmp_path, trap)
        process.join()
        assert process.exitcode == -signal.SIGKILL

    killed(kill_inside_an_evaluation)
    assert rows(tmp_path)[-1]["step"] == 12 and "eval_loss" not in rows(tmp_path)[-1]
    kept = checkpoints.newest_whole(tmp_path)
    killed(kill_inside_a_save)
    assert saves_begun(tmp_path) and checkpoints.newest_whole(tmp_path) == kept + 4
    process = start(config, tmp_path)
    process.join()
    assert process.exitcode == 0
    assert rows(tmp_path) == rows(straight)
    same_state(config, tmp_path, straight)


@pytest.fixture
def quick(monkeypatch):
    """Makes training in this process take half a second, with a cached initial state and train step.

    200 training images are the held-out images.
    """

    @functools.cache
    def created(text):
        graphdef, state = create_state(tiny_with(json.loads(text)))
        return graphdef, jax.tree.map(np.asarray, state)

    def cached_state(config):
        graphdef, state = created(key(config))
        return graphdef, jax.tree.map(jnp.array, state)

    @functools.cache
    def made(text, graphdef):
        return make_train_step(tiny_with(json.loads(text)), graphdef)

    create_state = losses.create_state
    make_train_step = losses.make_train_step
    load = datasets.load
    monkeypatch.setattr(losses, "create_state", cached_state)
    monkeypatch.setattr(losses, "make_train_step", lambda config, graphdef: made(key(config), graphdef))
    monkeypatch.setattr(
        datasets, "load", lambda config, split: datasets.Split(load(config, "train").images[:200], None)
    )


@pytest.fixture
def foreground():
    """Sets the signal handlers of a foreground program, because tests may run under nohup or in the background."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def key(config):
    """Returns, as JSON, the sections of the config that the compiled step depends on."""
    return json.dumps({name: json.loads(config[name].to_json()) for name in ("model", "optim", "data")})


def tiny_with(sections):
    config = tiny.get_config()
    for name, values in sections.items():
        config[name].update({field: tuple(v) if isinstance(v, list) else v for field, v in values.items()})
    return config


def at_step(monkeypatch, step, act):
    """Calls `act` after training has logged a step and before the next step."""
    write = loop.MetricsWriter.write

    def writing(self, logged, values):
        write(self, logged, values)
        if logged == step and "loss" in values:
            act()

    monkeypatch.setattr(loop.MetricsWriter, "write", writing)


@pytest.mark.parametrize(
    ("number", "optimizer"), [(signal.SIGINT, "Muon"), *((number, "Adam") for number in loop.SAVING_SIGNALS[1:])]
)
def test_a_signal_saves_at_once_and_does_not_change_the_result(
    quick, foreground, monkeypatch, tmp_path, number, optimizer
):
    """Catches a stop inside a step or only at the next checkpoint, and a lost step, line or momentum."""
    config = tiny.get_config()
    config.optim.optimizer = optimizer
    run_lib.train(config, tmp_path / "straight")
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Stopped, match=f"{number.name} after step 6, which is saved") as stopped:
            run_lib.train(config, tmp_path / "stopped")
    assert stopped.value.number == number and signal.getsignal(number) == before
    assert checkpoints.newest_whole(tmp_path / "stopped") == 6
    run_lib.train(config, tmp_path / "stopped")
    assert rows(tmp_path / "stopped") == rows(tmp_path / "straight")
    same_state(config, tmp_path / "stopped", tmp_path / "straight")


@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGINT, signal.SIGTERM),
        (signal.SIGTERM, signal.SIGINT),
        (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM),  # from the shell and the terminal, then from the system
        (signal.SIGXCPU, signal.SIGXCPU, signal.SIGXCPU),  # every second
    ],
)
def test_several_signals_in_a_step_save_once(quick, foreground, monkeypatch, tmp_path, numbers):
    """Catches a second signal that kills the process before the state is saved, or is taken for the first."""
    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda: [os.kill(os.getpid(), number) for number in numbers])
        with pytest.raises(Stopped, match="after step 6, which is saved") as stopped:
            run_lib.train(tiny.get_config(), tmp_path)
    assert stopped.value.number == numbers[0] and checkpoints.newest_whole(tmp_path) == 6


def test_a_second_ctrl_c_interrupts_at_once(quick, foreground, monkeypatch, tmp_path):
    """Catches a program that a user cannot stop while it waits for a long step."""
    at_step(monkeypatch, 6, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt):
        run_lib.train(tiny.get_config(), tmp_path)


def test_nohup_is_respected(quick, foreground, monkeypatch, tmp_path):
    """Catches a training under nohup that stops when the terminal closes."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    at_step(monkeypatch, 6, lambda: os.kill(os.getpid(), signal.SIGHUP))
    run_lib.train(tiny.get_config(), tmp_path)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert checkpoints.newest_whole(tmp_path) == 12


def test_a_clock_that_jumps_backwards_changes_nothing(quick, monkeypatch, tmp_path):
    """Catches a rate, a progress bar or an order of checkpoints that is computed from the time of day."""
    config = tiny.get_config()
    run_lib.train(config, tmp_path / "straight")
    hours = itertools.count()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600 * next(hours))
    monkeypatch.setattr(tqdm.std, "time", time.time)
    config.training.n_iters = 7
    run_lib.train(config, tmp_path / "back")
    config.training.n_iters = 12
    run_lib.train(config, tmp_path / "back")
    assert rows(tmp_path / "back") == rows(tmp_path / "straight")
    same_state(config, tmp_path / "back", tmp_path / "straight")


def test_another_seed_is_refused_and_other_differences_are_named(quick, capsys, tmp_path):
    """Catches a run that is resumed with other settings without a message, and a warning that does not name them."""
    config = tiny.get_config()
    run_lib.train(config, tmp_path)
    config.training.n_iters = 14
    config.seed = 7
    with pytest.raises(UserError, match="is trained with seed=42, not 7: .* set --seed=42 or choose a new --workdir"):
        run_lib.train(config, tmp_path)
    config.seed = 42
    config.training.batch_size = 16
    config.optim.lr = 1e-4
    run_lib.train(config, tmp_path)
    assert "continues with training.batch_size=16 (before: 8), optim.lr=0.0001 (before: " in capsys.readouterr().err
    config.training.n_iters = 15
    run_lib.train(config, tmp_path)
    assert "continues with" not in capsys.readouterr().err  # config.json has the new values


def same_state(config, one, other):
    jax.tree.map(np.testing.assert_array_equal, state_at(config, one), state_at(config, other))


def test_no_step_is_dispatched_before_the_last_one_has_finished(quick, monkeypatch, tmp_path):
    """Catches a signal that has to wait for two steps. A dispatched step cannot be cancelled."""
    events = []
    make = losses.make_train_step

    class Watched(float):
        """A metric. Reading it waits for the step."""

        def __float__(self):
            events.append("read")
            return super().__float__()

    def make_watched(*arguments):
        step = make(*arguments)

        def watched(state, images):
            events.append("dispatched")
            state, metrics = step(state, images)
            return state, {name: Watched(value) for name, value in metrics.items()}

        return watched

    monkeypatch.setattr(losses, "make_train_step", make_watched)
    config = tiny.get_config()
    config.training.log_freq = 100  # since logging a step waits for it
    run_lib.train(config, tmp_path)
    assert events.count("dispatched") == 12 and events[-1] == "read"
    assert ("dispatched", "dispatched") not in itertools.pairwise(events)


def test_a_signal_ends_an_evaluation_and_the_next_run_repeats_it(quick, monkeypatch, tmp_path):
    """Catches a stop that waits minutes for an evaluation, and an evaluation that is missing afterwards."""
    config = tiny.get_config()
    config.training.eval_freq = 5
    run_lib.train(config, tmp_path / "straight")
    seen = []
    eval_loss = losses.eval_loss

    def interrupted(*args, **options):
        seen.append(os.kill(os.getpid(), signal.SIGTERM))
        return eval_loss(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(losses, "eval_loss", interrupted)
        with pytest.raises(Stopped, match="after step 5"):
            run_lib.train(config, tmp_path / "stopped")
    assert len(seen) == 1 and not any("eval_loss" in row for row in rows(tmp_path / "stopped"))
    run_lib.train(config, tmp_path / "stopped")
    assert rows(tmp_path / "stopped") == rows(tmp_path / "straight")


def test_a_second_training_run_is_refused_and_an_evaluation_is_not(quick, monkeypatch, tmp_path):
    """Catches two runs that write to one workdir, and a lock that also excludes readers."""
    config = tiny.get_config()
    config.eval.enable_fid = False
    seen = []

    def meanwhile():
        with pytest.raises(UserError, match="another process trains in"):
            run_lib.train(config, tmp_path)
        seen.append(run_lib.evaluate(config, tmp_path)["checkpoint_step"])

    at_step(monkeypatch, 10, meanwhile)
    run_lib.train(config, tmp_path)
    assert seen[0] in (4, 8)


@pytest.mark.parametrize("bad_step", [7, 8])  # between two checkpoints, and at a checkpoint
def test_a_gradient_that_is_not_finite_is_reported_with_the_losses_before(quick, monkeypatch, tmp_path, bad_step):
    """Catches NaN in a checkpoint, and a message that does not show when the problem began."""
    config = tiny.get_config()
    make = losses.make_train_step

    def make_diverging(*arguments):
        step = make(*arguments)

        def diverging(state, images):
            state, metrics = step(state, images)
            bad = jnp.where(state.step == bad_step, jnp.nan, 1)
            return state, metrics | {"gradient_norm": metrics["gradient_norm"] * bad}

        return diverging

    monkeypatch.setattr(losses, "make_train_step", make_diverging)
    message = rf"step {bad_step}: the loss is 0[.0-9]* \(before: 0.*, 0.*, 0.*\) and the gradient norm is nan"
    with pytest.raises(UserError, match=message):
        run_lib.train(config, tmp_path)
    assert checkpoints.newest_whole(tmp_path) == 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state_at(config, tmp_path)))


def test_a_full_disk_loses_nothing(quick, monkeypatch, tmp_path):
    """Catches a traceback from orbax, and a lost checkpoint."""
    config = tiny.get_config()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        while not checkpoints.saved_steps(tmp_path):
            time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))

    at_step(monkeypatch, 6, fill)
    try:
        with pytest.raises(UserError, match="a checkpoint cannot be saved; those before it are whole"):
            run_lib.train(config, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert checkpoints.newest_whole(tmp_path) == 4


# Random sequences of operations


OPERATIONS = st.one_of(
    st.tuples(st.just("train"), st.integers(1, 5)),
    st.tuples(st.just("kill"), st.integers(1, 7)),
    st.tuples(st.just("eval"), st.just(0)),
    st.tuples(st.just("corrupt"), st.integers(0, 10**6)),
)


@pytest.fixture
def reference(quick, monkeypatch, tmp_path_factory):
    """Returns the metrics and the state after every step of a run of 24 steps without interruption."""
    config = tiny.get_config()
    workdir = tmp_path_factory.mktemp("reference")
    states = {}
    make = losses.make_train_step
    config.training.update(n_iters=24, snapshot_freq=24, snapshot_freq_for_preemption=24)

    def make_recording(*arguments):
        step = make(*arguments)

        def recording(state, images):
            state, metrics = step(state, images)
            states[int(state.step)] = jax.tree.map(np.array, state)
            return state, metrics

        return recording

    with monkeypatch.context() as patch:
        patch.setattr(losses, "make_train_step", make_recording)
        run_lib.train(config, workdir)
    return rows(workdir), states


class Killed(BaseException):
    """Ends a run in this process like a kill."""


def kill_at(step, config, workdir, crashed):
    """Ends a run at a step, and copies the files on disk at that moment, with unfinished saves, to `crashed`."""

    def die():
        subprocess.run(["cp", "-a", workdir, crashed], check=False, capture_output=True)
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        at_step(patch, step, die)
        run_lib.train(config, workdir)


@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.generate],  # shrinking would take many minutes
)
@given(operations=st.lists(OPERATIONS, min_size=4, max_size=6))
def test_no_sequence_of_operations_changes_the_result(reference, tmp_path_factory, operations):
    """Catches a run that does not resume from its newest intact checkpoint, or that then differs from `reference`."""
    config = tiny.get_config()
    workdir = tmp_path_factory.mktemp("operations") / "0"
    config.training.update(snapshot_freq=6, snapshot_freq_for_preemption=2)
    config.eval.update(enable_fid=False, num_samples=2)
    expected_rows, expected_states = reference
    broken = set()  # steps of damaged checkpoints, which training must move to `damaged`
    for number, (operation, amount) in enumerate(operations):
        steps = checkpoints.saved_steps(workdir)
        found = max(set(steps) - broken, default=0)
        if operation == "corrupt" and set(steps) - broken == set(steps) > set():
            items = (workdir / f"checkpoints/{steps[-1]}/ema").rglob("*")
            files = sorted(path for path in items if path.is_file() and path.stat().st_size > 9)
            [truncate, flip_a_bit, os.unlink][amount % 3](files[amount % len(files)])
            broken.add(steps[-1])
        elif operation == "eval" and steps:
            check_eval(config, workdir, found)
        elif operation in ("train", "kill") and (found or not steps):
            if operation == "kill":
                config.training.n_iters = found + amount + 3
                crashed = workdir.with_name(str(number + 1))
                kill_at(found + amount, config, workdir, crashed)
                workdir = crashed
            else:
                config.training.n_iters = found + amount
                run_lib.train(config, workdir)
                assert checkpoints.newest_whole(workdir) == found + amount
                assert rows(workdir) == [row for row in expected_rows if row["step"] <= found + amount]
            assert {int(path.name.rstrip("+")) for path in workdir.glob("damaged/*")} >= broken
            broken = set()
        if whole := set(checkpoints.saved_steps(workdir)) - broken:
            jax.tree.map(np.testing.assert_array_equal, state_at(config, workdir), expected_states[max(whole)])


def check_eval(config, workdir, found):
    """Checks that an evaluation uses the newest intact checkpoint, and changes only the folder of evaluations."""

    def others():
        return {path: data for path, data in contents(workdir).items() if path.parts[0] != "eval"}

    before = others()
    if found:
        assert run_lib.evaluate(config, workdir)["checkpoint_step"] == found
    else:
        with pytest.raises(UserError, match="no checkpoint"):
            run_lib.evaluate(config, workdir)
    assert others() == before
