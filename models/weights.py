"""The weights of a network in one .npz of our own: what the repository ships, and what a colleague can be sent."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from core.errors import UserError
from core.files import read_npz, write_npz
from models import Params, abstract_params

ORIGIN = "origin"  # the array that says where the others come from


class Weights(NamedTuple):
    step: int
    config: dict[str, Any]  # sections model and data, as they were trained
    arrays: dict[str, np.ndarray]


def save_weights(path: Path, config: ConfigDict, step: int, params: Params) -> None:
    """Writes parameters under their names in the network, joined by dots, with the step and the config."""
    arrays = {_name(where): np.asarray(variable[...]) for where, variable in nnx.to_flat_state(params)}
    stored = json.loads(config.to_json())
    origin = {"step": step, "config": {section: stored[section] for section in ("model", "data")}}
    write_npz(path, arrays | {ORIGIN: np.asarray(json.dumps(origin))})


def read_weights(path: Path) -> Weights:
    """Raises UserError where the file is broken or was not written by `save_weights`."""
    arrays = read_npz(path, required={ORIGIN})
    try:
        origin = json.loads(str(arrays.pop(ORIGIN)))
        if not 0 <= (step := int(origin["step"])) < 2**31:
            raise ValueError(f"step {step} is out of range")
        return Weights(step, dict(origin["config"]), arrays)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: its origin cannot be read ({error}); fetch it anew") from error


def digest(params: Params) -> str:
    """SHA-256 of the weights as float32, whatever file they came from."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        found.update(np.ascontiguousarray(leaf, "<f4"))
    return found.hexdigest()


def fill(path: Path, config: ConfigDict, arrays: dict[str, np.ndarray]) -> Params:
    """The parameters of the config's network.

    Raises UserError where an array is missing, left over, of another shape or type, or not finite.
    """
    _, abstract = abstract_params(config)
    wanted = {_name(where): (where, variable) for where, variable in nnx.to_flat_state(abstract)}
    if different := wanted.keys() ^ arrays.keys():
        raise UserError(f"{path}: {min(different)} is in the file or in the network of the config, but not in both")
    for name, (_, variable) in wanted.items():
        found = arrays[name]
        if found.shape != variable.shape or found.dtype != variable.dtype or not np.isfinite(found).all():
            expected = f"finite {variable.dtype} {list(variable.shape)}"
            raise UserError(f"{path}: {name} should be {expected}, found {found.dtype} {list(found.shape)}")
    leaves = [(where, variable.replace(jnp.asarray(arrays[name]))) for name, (where, variable) in wanted.items()]
    return nnx.from_flat_state(leaves)


def _name(where: tuple) -> str:
    return ".".join(map(str, where))
