"""What a workdir keeps: the resolved config and, through orbax, the train state at chosen steps."""

import json
from pathlib import Path
from typing import Any, TypeVar

import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

import files
from errors import UserError
from models import Params, abstract_params
from parallel import replicated_like

State = TypeVar("State")  # losses.TrainState: a dataclass with step, ema and whatever else training needs


def check_network(config: ConfigDict, workdir: Path) -> None:
    """Raises UserError where the workdir's network is not the config's, naming each field that differs."""
    stored = files.read_json(workdir / "config.json")
    wanted = json.loads(config.to_json())
    fields = [("model", name) for name in wanted["model"] if name not in ("dropout", "ema_rate", "dtype")]
    fields += [("data", name) for name in ("dataset", "image_size", "num_channels", "centered")]
    differing = [
        f"{section}.{name} is {wanted[section][name]}, there {stored.get(section, {}).get(name)}"
        for section, name in fields
        if wanted[section][name] != stored.get(section, {}).get(name)
    ]
    if differing:
        raise UserError(f"{workdir} was trained with another config: {'; '.join(differing)}")


def claim(config: ConfigDict, workdir: Path) -> None:
    """Makes the workdir and writes the resolved config; raises UserError where another network lives there."""
    if (workdir / "config.json").exists():
        check_network(config, workdir)
    files.write_text(workdir / "config.json", config.to_json(indent=2) + "\n")


def open_manager(workdir: Path, *, keep_period: int = 1, read_only: bool = False) -> ocp.CheckpointManager:
    """Asynchronous, atomic saving. Kept are the newest checkpoint and for ever those at multiples of keep_period.

    So is what an earlier run kept: all that is there but its newest.
    """
    keep = [policy.LatestN(1), policy.EveryNSteps(keep_period), policy.CustomSteps(saved_steps(workdir)[:-1])]
    options = ocp.CheckpointManagerOptions(preservation_policy=policy.AnyPreservationPolicy(keep), read_only=read_only)
    return ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)


def saved_steps(workdir: Path) -> list[int]:
    """The steps of all checkpoints, ascending."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


def save(manager: ocp.CheckpointManager, state: State) -> None:
    """Saves without waiting; a step that is already there is left as it is."""
    step = int(state.step)
    if step not in manager.all_steps():
        items = {name: ocp.args.StandardSave(item) for name, item in _items(state).items()}
        manager.save(step, args=ocp.args.Composite(**items))


def restore(manager: ocp.CheckpointManager, state: State) -> State:
    """The newest checkpoint, shaped like `state` and on all devices; `state` itself where there is none."""
    if manager.latest_step() is None:
        return state
    items = {name: ocp.args.StandardRestore(replicated_like(item)) for name, item in _items(state).items()}
    restored = manager.restore(manager.latest_step(), args=ocp.args.Composite(**items))
    return type(state)(ema=restored["ema"], **restored["train"])


def require(config: ConfigDict, workdir: Path) -> int:
    """The step of config.eval.checkpoint (-1: the newest).

    Raises UserError where there is none such, or the workdir holds another network.
    """
    folder, steps, wanted = workdir / "checkpoints", saved_steps(workdir), config.eval.checkpoint
    if not steps:
        raise UserError(f"no checkpoint in {folder}: train first, with --mode=train and the same --workdir")
    if wanted != -1 and wanted not in steps:
        raise UserError(f"no checkpoint of step {wanted} in {folder}; there are {', '.join(map(str, steps))}")
    check_network(config, workdir)
    return steps[-1] if wanted == -1 else wanted


def load_ema(config: ConfigDict, workdir: Path) -> tuple[Any, Params]:
    """The network's definition and its averaged weights at the step of `require`, on all devices."""
    step = require(config, workdir)
    graphdef, params = abstract_params(config)
    with open_manager(workdir, read_only=True) as manager:
        restored = manager.restore(step, args=ocp.args.Composite(ema=ocp.args.StandardRestore(replicated_like(params))))
    return graphdef, restored["ema"]


def _items(state: State) -> dict[str, Any]:
    """The averaged weights stand alone, so that an evaluation reads nothing else."""
    return {"train": {name: value for name, value in vars(state).items() if name != "ema"}, "ema": state.ema}
