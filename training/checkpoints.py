"""Saves and restores training: the resolved config and, with orbax, checkpoints with checksums.

A checkpoint has three items: `ema`, the averaged weights, which are all that an evaluation reads; `train`, the rest of
the train state; and `facts`, the step, config and versions as JSON. Each item is saved atomically, together with the
checksums of its files. "Whole" means that a checkpoint is complete and all its files match their checksums.
"""

import asyncio
import contextlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from configs.default import get_default_config
from core import files, parallel
from core.errors import UserError, warn
from core.rng import key_for
from models import Params, abstract_params
from models.weights import SECTIONS

CHECKSUMS = "checksums.json"

TRAINING_FIELDS = {
    "training": ("batch_size", "weighting"),
    "data": ("path", "held_out", "skip_bad", "random_flip", "uniform_dequantization"),
    "model": ("dropout", "ema_rate", "dtype"),
    "optim": (),
}
"""Fields, by section, that must be as in the interrupted run for a resumed training to continue unchanged.

Network fields are checked separately. An empty tuple means all fields of the section.
"""

State = TypeVar("State")
"""losses.TrainState: a dataclass with the fields `step` and `ema`, and others that are saved under `train`."""


def check_network(config: ConfigDict, stored: dict[str, Any], place: Path) -> None:
    """Raises UserError if `stored` and `config` describe different networks. The message names each field that differs.

    stored: the config stored at `place`, as JSON.
    """
    wanted = json.loads(config.to_json())
    there = {section: _section(stored, section, place) for section in SECTIONS}
    fields = [("model", name) for name in wanted["model"] if name not in ("dropout", "ema_rate", "dtype")]
    fields += [("schedule", name) for name in wanted["schedule"]]
    fields += [("data", name) for name in ("dataset", "image_size", "num_channels", "centered")]
    differing = [
        f"{section}.{name} is {wanted[section][name]}, there {there[section][name]}"
        for section, name in fields
        if wanted[section][name] != there[section][name]
    ]
    if differing:
        raise UserError(f"{place} was trained with another config: {'; '.join(differing)}")


def _section(stored: dict[str, Any], name: str, place: Path) -> dict[str, Any]:
    """A section of the stored config. Fields that were added to the program since then get their defaults."""
    section = stored.get(name, {})
    if not isinstance(section, dict):
        raise UserError(f"{place}: {name}={section!r} in the config stored there should be a JSON object of fields")
    return json.loads(get_default_config()[name].to_json()) | section


def check_workdir(config: ConfigDict, workdir: Path) -> None:
    """Raises UserError if the training in the workdir had another network, optimiser or seed.

    Warns of other differences that change the training.
    """
    if not (workdir / "config.json").exists():
        return
    stored = files.read_json(workdir / "config.json")
    check_network(config, stored, workdir)
    if not saved_steps(workdir):
        return
    optimizer = _section(stored, "optim", workdir)["optimizer"]
    if optimizer != config.optim.optimizer:
        hint = f"the saved state fits only {optimizer}, so set that or choose a new --workdir"
        raise UserError(f"{workdir} is trained by optim.optimizer={optimizer}, not {config.optim.optimizer}: {hint}")
    if (workdir / "metrics.jsonl").exists():  # it does not exist if weights were imported and not trained further
        _check_run(config, stored, workdir)


def _check_run(config: ConfigDict, stored: dict[str, Any], workdir: Path) -> None:
    """Compares the fields that determine the training, except those of the network, with the stored config."""
    seed = stored.get("seed", config.seed)
    if seed != config.seed:
        hint = f"another seed would make it another run, so set --seed={seed} or choose a new --workdir"
        raise UserError(f"{workdir} is trained with seed={seed}, not {config.seed}: {hint}")
    wanted = json.loads(config.to_json())
    differing = []
    for section, names in TRAINING_FIELDS.items():
        there = _section(stored, section, workdir)
        for name in names or wanted[section]:
            if wanted[section][name] != there[name]:
                differing.append(f"{section}.{name}={wanted[section][name]!r} (before: {there[name]!r})")
    if differing:
        warn(f"{workdir} continues with {', '.join(differing)}")


def write_config(config: ConfigDict, workdir: Path) -> None:
    """Writes the resolved config to the workdir as config.json."""
    files.write_text(workdir / "config.json", config.to_json(indent=2) + "\n")


@contextlib.contextmanager
def only_writer(workdir: Path) -> Iterator[None]:
    """Creates the workdir and holds its lock, so that only one run writes to it.

    The operating system releases the lock when the process ends, even if it is killed. In a run of several processes,
    only the first process takes the lock. Raises UserError if another run holds the lock.
    """
    if not parallel.is_first():
        yield
        return
    busy = f"another process trains in {workdir}: wait for it, or choose another --workdir"
    with files.locking(workdir / ".lock", busy, wait=False):
        yield


class _ChecksummedFolder(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """Orbax's temporary folder of an item, renamed only after the checksums of its files are written."""

    async def finalize(self) -> None:
        await asyncio.to_thread(_write_checksums, Path(self.get()))
        await super().finalize()


def _write_checksums(folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("_CHECKPOINT"))
    checksums = {str(path.relative_to(folder)): files.file_sha256(path) for path in paths}
    (folder / CHECKSUMS).write_text(json.dumps(checksums))


def damage(folder: Path) -> str | None:
    """Describes the first error in the files of a checkpoint or of one of its items; returns None if it is whole.

    Checkpoints without checksums, from an earlier version of this program, are complete if they have orbax's marker.
    """
    if not (folder / CHECKSUMS).exists():
        return None if (folder / "commit_success.txt").exists() else "it is incomplete"
    try:
        for name, checksum in files.read_json(folder / CHECKSUMS).items():
            if files.file_sha256(folder / name) != checksum:
                return f"checksum mismatch in {name}"
    except (OSError, UserError) as error:
        return str(error)
    return None


def newest_whole(workdir: Path, item: str = "") -> int | None:
    """The step of the newest whole checkpoint, or of the newest checkpoint whose `item` is whole.

    Returns None if the workdir has no checkpoint. Warns of each damaged checkpoint that is skipped. Raises UserError if
    all checkpoints are damaged. Only the first process reads the files; all processes return its result.
    """
    steps = saved_steps(workdir)
    found = -1
    damages = []
    for step in reversed(steps) if parallel.is_first() else ():
        wrong = damage(workdir / "checkpoints" / str(step) / item)
        if wrong is None:
            found = step
            break
        damages.append(f"the checkpoint of step {step} in {workdir} is damaged ({wrong})")
    found = int(parallel.gather(np.asarray(found))[0])
    if not steps:
        return None
    if found == -1:
        hint = "move them away to start training from step 0"
        raise UserError(f"no checkpoint in {workdir / 'checkpoints'} is whole ({'; '.join(damages[:1])}): {hint}")
    for text in damages:
        warn(f"{text}; the one of step {found} is used")
    return found


def resume(config: ConfigDict, workdir: Path, state: State) -> State:
    """Loads the newest whole checkpoint, shaped and sharded like `state`; returns `state` if there is no checkpoint.

    Damaged checkpoints of later steps are moved to the folder `damaged` in the workdir. Raises UserError if the
    checkpoint is of another network.
    """
    step = newest_whole(workdir)
    if step is None:
        return state
    state = load(config, workdir, step=step, state=state)
    _move_damaged(workdir, after=step)
    return state


def load(config: ConfigDict, workdir: Path, step: int, state: State) -> State:
    """Loads the checkpoint of a step, shaped and sharded like `state`. Raises UserError if it is of another network."""
    _check_facts(config, workdir / "checkpoints" / str(step))
    items = {name: ocp.args.StandardRestore(parallel.abstract(item)) for name, item in _items(state).items()}
    with open_manager(workdir, read_only=True) as manager:
        restored = manager.restore(step, args=ocp.args.Composite(**items))
    return type(state)(ema=restored["ema"], **restored["train"])


def _move_damaged(workdir: Path, after: int) -> None:
    """Moves the damaged checkpoints after a step to the folder `damaged`, where orbax ignores them."""
    if parallel.is_first():
        for step in [step for step in saved_steps(workdir) if step > after]:
            target = workdir / "damaged" / str(step)
            while target.exists():
                target = target.with_name(f"{target.name}+")
            target.parent.mkdir(exist_ok=True)
            (workdir / "checkpoints" / str(step)).rename(target)
            warn(f"moved the damaged checkpoint of step {step} to {target}")
    parallel.gather(np.zeros(1))  # the other processes wait until this is done


def open_manager(
    workdir: Path, *, newest: int = 1, keep_period: int = 1, read_only: bool = False
) -> ocp.CheckpointManager:
    """Orbax's manager of the checkpoints in a workdir. Saves are asynchronous and atomic.

    It keeps the latest `newest` checkpoints and those at multiples of keep_period. It also keeps all checkpoints that
    exist now, except the latest `newest` ones, because an earlier run kept them for good.
    """
    earlier = policy.CustomSteps(saved_steps(workdir)[:-newest])
    keep = [policy.LatestN(newest), policy.EveryNSteps(keep_period), earlier]
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy.AnyPreservationPolicy(keep),
        read_only=read_only,
        temporary_path_class=_ChecksummedFolder,
    )
    return ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)


def saved_steps(workdir: Path) -> list[int]:
    """The steps of all checkpoints of a workdir, ascending."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


@contextlib.contextmanager
def saving(config: ConfigDict, workdir: Path) -> Iterator[Callable[[State], None]]:
    """Yields a function that saves a state in the background. All saves are on disk when the block ends.

    A step that is already saved is not saved again. `open_manager` explains which checkpoints are kept, with the
    latest training.max_to_keep and those at multiples of training.snapshot_freq. Raises UserError if a file cannot be
    written.
    """
    training = config.training
    manager = open_manager(workdir, newest=training.max_to_keep, keep_period=training.snapshot_freq)

    def save(state: State) -> None:
        step = int(state.step)
        if step not in manager.all_steps():
            items = {name: ocp.args.StandardSave(item) for name, item in _items(state).items()}
            facts = ocp.args.JsonSave(_facts(config, step))
            with _reporting_disk_errors(workdir):
                manager.save(step, args=ocp.args.Composite(facts=facts, **items))

    try:
        yield save
    finally:
        with _reporting_disk_errors(workdir):
            manager.close()


@contextlib.contextmanager
def _reporting_disk_errors(workdir: Path) -> Iterator[None]:
    """Raises UserError if orbax or tensorstore could not write a file of this save or of the previous save."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"{workdir}: a checkpoint cannot be saved; those before it are whole ({reason})") from error


def _facts(config: ConfigDict, step: int) -> dict[str, Any]:
    """The config, versions and devices with which a state was made, and its positions in data and random numbers.

    Data and random numbers are functions of (seed, step), so the step is the position in both.
    """
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {
        "step": step,
        "data": {"next_batch": step, "batch_size": config.training.batch_size, "seed": config.seed},
        "rng": {"key": jax.random.key_data(key_for(config.seed, "train")).tolist(), "next_fold": step},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind} in {jax.process_count()} processes",
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "config": json.loads(config.to_json()),
    }


def _check_facts(config: ConfigDict, folder: Path) -> None:
    """Raises UserError if the checkpoint in a folder is of another network."""
    facts = folder / "facts" / "metadata"
    if facts.exists():
        check_network(config, files.read_json(facts)["config"], folder)


def require(config: ConfigDict, workdir: Path) -> None:
    """Raises UserError if the checkpoint config.eval.checkpoint (-1: the newest) is missing or of another network."""
    folder = workdir / "checkpoints"
    steps = saved_steps(workdir)
    wanted = config.eval.checkpoint
    if not steps:
        raise UserError(f"no checkpoint in {folder}: train first, with --mode=train and the same --workdir")
    if wanted != -1 and wanted not in steps:
        raise UserError(f"no checkpoint of step {wanted} in {folder}; there are {', '.join(map(str, steps))}")
    check_network(config, files.read_json(workdir / "config.json"), workdir)


def load_ema(config: ConfigDict, workdir: Path) -> tuple[int, Any, Params]:
    """Loads (step, network definition, EMA weights on all devices) from the checkpoint config.eval.checkpoint.

    -1 selects the newest checkpoint whose EMA weights are whole. Raises UserError as `require` does, and if the
    selected checkpoint is damaged.
    """
    require(config, workdir)
    wanted = config.eval.checkpoint
    step = newest_whole(workdir, "ema") if wanted == -1 else wanted
    folder = workdir / "checkpoints" / str(step)
    if wanted != -1 and (wrong := damage(folder / "ema")):
        raise UserError(f"{folder} is damaged ({wrong}); --config.eval.checkpoint=-1 takes the newest that is whole")
    _check_facts(config, folder)
    graphdef, params = abstract_params(config)
    with open_manager(workdir, read_only=True) as manager:
        restore = ocp.args.StandardRestore(parallel.abstract(params))
        try:
            return step, graphdef, manager.restore(step, args=ocp.args.Composite(ema=restore))["ema"]
        except Exception:
            if damage(folder / "ema") is None or wanted != -1:
                raise
    return load_ema(config, workdir)  # a training run has meanwhile replaced this checkpoint by a newer one


def _items(state: State) -> dict[str, Any]:
    """The items of a checkpoint that contain arrays, by name."""
    train = {name: value for name, value in vars(state).items() if name != "ema"}
    return {"train": train, "ema": state.ema}
