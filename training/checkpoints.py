"""What a workdir keeps: the resolved config and, through orbax, the train state at chosen steps.

A checkpoint holds three items: `ema` alone, so that an evaluation reads nothing else; `train`, the rest of the state;
and `facts`, which say in JSON how it came to be. Each is committed together with the checksums of its files.
"""

import asyncio
import contextlib
import fcntl
import hashlib
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

CHECKSUMS = "checksums.json"

State = TypeVar("State")  # losses.TrainState: a dataclass with step, ema and whatever else training needs


def check_network(config: ConfigDict, stored: dict[str, Any], place: Path) -> None:
    """Raises UserError where the config stored in a place has another network, naming each field that differs."""
    wanted = json.loads(config.to_json())
    there = {section: _section(stored, section, place) for section in ("model", "data")}
    fields = [("model", name) for name in wanted["model"] if name not in ("dropout", "ema_rate", "dtype")]
    fields += [("data", name) for name in ("dataset", "image_size", "num_channels", "centered")]
    differing = [
        f"{section}.{name} is {wanted[section][name]}, there {there[section][name]}"
        for section, name in fields
        if wanted[section][name] != there[section][name]
    ]
    if differing:
        raise UserError(f"{place} was trained with another config: {'; '.join(differing)}")


def _section(stored: dict[str, Any], name: str, place: Path) -> dict[str, Any]:
    """A field that was not there yet when the config was stored had the value that is now its default."""
    if not isinstance(section := stored.get(name, {}), dict):
        raise UserError(f"{place}: {name}={section!r} in the config stored there is no section of one")
    return json.loads(get_default_config()[name].to_json()) | section


def check_workdir(config: ConfigDict, workdir: Path) -> None:
    """Raises UserError where the workdir's training cannot go on with this config: another network or optimiser.

    Warns where the images have another path now: they may have moved there, or be others.
    """
    if not (workdir / "config.json").exists():
        return
    stored = files.read_json(workdir / "config.json")
    check_network(config, stored, workdir)
    if not saved_steps(workdir):
        return
    optimizer, path = _section(stored, "optim", workdir)["optimizer"], _section(stored, "data", workdir)["path"]
    if optimizer != config.optim.optimizer:
        hint = "another's state cannot take over, so set that one or take a new --workdir"
        raise UserError(f"{workdir} is trained by optim.optimizer={optimizer}, not {config.optim.optimizer}: {hint}")
    if path != config.data.path:
        warn(f"{workdir} goes on with data.path={config.data.path!r}, where it had {path!r} before")


def write_config(config: ConfigDict, workdir: Path) -> None:
    files.write_text(workdir / "config.json", config.to_json(indent=2) + "\n")


@contextlib.contextmanager
def only_writer(workdir: Path) -> Iterator[None]:
    """Makes the workdir and holds its lock, which the system frees when the process dies, however it dies.

    Raises UserError where another process holds it. Of several processes of one run, the first holds it for all.
    """
    if not parallel.is_first():
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process trains in {workdir}: wait for it, or take another --workdir") from error
        yield


class _Committed(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """A folder that gets its name last, after the checksums of all that is in it."""

    async def finalize(self) -> None:
        await asyncio.to_thread(_write_checksums, Path(self.get()))
        await super().finalize()


def _write_checksums(folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("_CHECKPOINT"))
    (folder / CHECKSUMS).write_text(json.dumps({str(path.relative_to(folder)): _digest(path) for path in paths}))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint or of one of its items, if anything is.

    One without checksums, which an earlier version of this program wrote, has but orbax's mark of a finished save.
    """
    if not (folder / CHECKSUMS).exists():
        return None if (folder / "commit_success.txt").exists() else "it is not whole"
    try:
        for name, digest in files.read_json(folder / CHECKSUMS).items():
            if _digest(folder / name) != digest:
                return f"{name} is not as it was written"
    except (OSError, UserError) as error:
        return str(error)
    return None


def newest_whole(workdir: Path, item: str = "") -> int | None:
    """The newest step at which the checkpoint, or the item of it, is as it was written; warns of those after it.

    None where the workdir holds no checkpoint; raises UserError where it holds damaged ones alone. All processes get
    the answer of the first.
    """
    steps, damages = saved_steps(workdir), []
    found = -1 if steps else 0
    for step in reversed(steps) if parallel.is_first() else ():
        if (wrong := damage(workdir / "checkpoints" / str(step) / item)) is None:
            found = step
            break
        damages.append(f"the checkpoint of step {step} in {workdir} is damaged ({wrong})")
    found = int(parallel.gather(np.asarray(found))[0])
    if found == -1:
        hint = "move them away to start anew"
        raise UserError(f"no checkpoint in {workdir / 'checkpoints'} is whole ({'; '.join(damages[:1])}): {hint}")
    for text in damages:
        warn(f"{text}; the one of step {found} is taken")
    return found if steps else None


def resume(config: ConfigDict, workdir: Path, state: State) -> State:
    """The newest whole checkpoint, shaped and sharded like `state`; `state` itself where there is none.

    Damaged ones after it are moved out of the way. Raises UserError where it is of another network.
    """
    step = newest_whole(workdir)
    if step is None:
        return state
    state = load(config, workdir, step, state)
    _set_aside(workdir, after=step)
    return state


def load(config: ConfigDict, workdir: Path, step: int, state: State) -> State:
    """The checkpoint of a step, shaped and sharded like `state`. Raises UserError where it is of another network."""
    _check_facts(config, workdir / "checkpoints" / str(step))
    items = {name: ocp.args.StandardRestore(parallel.abstract(item)) for name, item in _items(state).items()}
    with open_manager(workdir, read_only=True) as manager:
        restored = manager.restore(step, args=ocp.args.Composite(**items))
    return type(state)(ema=restored["ema"], **restored["train"])


def _set_aside(workdir: Path, after: int) -> None:
    """Moves the damaged checkpoints after a step to the workdir's folder `damaged`, out of the way of their steps."""
    for step in (step for step in saved_steps(workdir) if step > after and parallel.is_first()):
        target = workdir / "damaged" / str(step)
        while target.exists():
            target = target.with_name(f"{target.name}+")
        target.parent.mkdir(exist_ok=True)
        (workdir / "checkpoints" / str(step)).rename(target)
        warn(f"moved the damaged checkpoint of step {step} to {target}")
    parallel.gather(np.zeros(1))  # the others go on when it is done


def open_manager(
    workdir: Path, *, newest: int = 1, keep_period: int = 1, read_only: bool = False
) -> ocp.CheckpointManager:
    """Asynchronous, atomic saving. Kept are the newest few and for ever those at multiples of keep_period.

    So is what an earlier run kept: all that is there but its newest few.
    """
    earlier = policy.CustomSteps(saved_steps(workdir)[:-newest])
    keep = [policy.LatestN(newest), policy.EveryNSteps(keep_period), earlier]
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy.AnyPreservationPolicy(keep), read_only=read_only, temporary_path_class=_Committed
    )
    return ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)


def saved_steps(workdir: Path) -> list[int]:
    """The steps of all checkpoints, ascending."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


@contextlib.contextmanager
def saving(config: ConfigDict, workdir: Path) -> Iterator[Callable[[State], None]]:
    """A function that saves a state without waiting; at the end everything is on the disk.

    A step that is already there is left as it is. Kept are the newest training.max_to_keep, for ever those at
    multiples of training.snapshot_freq, and what an earlier run kept. Raises UserError where the disk takes no more.
    """
    training = config.training
    manager = open_manager(workdir, newest=training.max_to_keep, keep_period=training.snapshot_freq)

    def save(state: State) -> None:
        step = int(state.step)
        if step not in manager.all_steps():
            items = {name: ocp.args.StandardSave(item) for name, item in _items(state).items()}
            with _disk_trouble(workdir):
                manager.save(step, args=ocp.args.Composite(facts=ocp.args.JsonSave(_facts(config, step)), **items))

    try:
        yield save
    finally:
        with _disk_trouble(workdir):
            manager.close()


@contextlib.contextmanager
def _disk_trouble(workdir: Path) -> Iterator[None]:
    """Raises UserError for what orbax and tensorstore raise where a file of this save or the last cannot be written."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"{workdir}: a checkpoint cannot be saved; those before it are whole ({reason})") from error


def _facts(config: ConfigDict, step: int) -> dict[str, Any]:
    """How the state came to be. Data and randomness of step k are functions of (seed, k): these are their positions."""
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
    if (facts := folder / "facts" / "metadata").exists():
        check_network(config, files.read_json(facts)["config"], folder)


def require(config: ConfigDict, workdir: Path) -> None:
    """Raises UserError where config.eval.checkpoint (-1: the newest) is not there or is of another network."""
    folder, steps, wanted = workdir / "checkpoints", saved_steps(workdir), config.eval.checkpoint
    if not steps:
        raise UserError(f"no checkpoint in {folder}: train first, with --mode=train and the same --workdir")
    if wanted != -1 and wanted not in steps:
        raise UserError(f"no checkpoint of step {wanted} in {folder}; there are {', '.join(map(str, steps))}")
    check_network(config, files.read_json(workdir / "config.json"), workdir)


def load_ema(config: ConfigDict, workdir: Path) -> tuple[int, Any, Params]:
    """(step, the network's definition, its averaged weights on all devices) as config.eval.checkpoint says.

    -1 means the newest whole one. Raises UserError as `require` does, and where the one asked for is damaged.
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
    return load_ema(config, workdir)  # a trainer beside this has just replaced it by a newer one


def _items(state: State) -> dict[str, Any]:
    return {"train": {name: value for name, value in vars(state).items() if name != "ema"}, "ema": state.ema}
