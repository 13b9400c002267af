"""Reads and writes weights of the diffusion network: one .npz file with the training step and the config."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Shaped
from ml_collections import ConfigDict

from core.errors import UserError
from core.files import read_npz, refuse_failed_download, write_npz
from models import Params, abstract_params

ORIGIN = "origin"  # name of the array that has the step and the config as JSON
SECTIONS = ("model", "schedule", "data")  # the sections of a config that a network depends on

Arrays = dict[str, Shaped[np.ndarray, "..."]]
"""Weights. The key of each is its path in the network, with the parts joined by dots."""


Convert = Callable[[Shaped[np.ndarray, "..."]], Shaped[np.ndarray, "..."]]


class Weights(NamedTuple):
    """The content of a weights file.

    Attributes:
      step: training step of the weights.
      config: the sections SECTIONS of the config that the network was trained with.
      arrays: the weights.
    """

    step: int
    config: dict[str, Any]
    arrays: Arrays


def save_weights(path: Path, config: ConfigDict, step: int, params: Params) -> None:
    """Writes the parameters with the step and SECTIONS of the config."""
    arrays = {_name(keys): np.asarray(variable[...]) for keys, variable in nnx.to_flat_state(params)}
    stored = json.loads(config.to_json())
    origin = {"step": step, "config": {section: stored[section] for section in SECTIONS}}
    write_npz(path, arrays | {ORIGIN: np.asarray(json.dumps(origin))})


def read_weights(path: Path) -> Weights:
    """Reads a file that `save_weights` wrote. Raises UserError if it is damaged or another kind of file."""
    refuse_failed_download(path)
    arrays = read_npz(path, required={ORIGIN})
    try:
        origin = json.loads(str(arrays.pop(ORIGIN)))
        step = int(origin["step"])
        if not 0 <= step < 2**31:
            raise ValueError(f"step {step} is out of range")
        return Weights(step, dict(origin["config"]), arrays)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: its origin cannot be read ({error}); fetch it anew") from error


def digest(params: Params) -> str:
    """Returns the SHA-256 of the parameters as float32, in tree order. It does not depend on the file format."""
    sha256 = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        sha256.update(np.ascontiguousarray(leaf, "<f4"))
    return sha256.hexdigest()


def fill(path: Path, config: ConfigDict, arrays: Arrays) -> Params:
    """Fills the parameters of the config's network with the values of `arrays`. `path` is for error messages.

    Raises UserError if an array is missing, left over, of another shape or dtype, or not finite.
    """
    return _fill(path, abstract_params(config)[1], arrays)


def _fill(path: Path, abstract: Params, arrays: Arrays) -> Params:
    expected = {_name(keys): (keys, variable) for keys, variable in nnx.to_flat_state(abstract)}
    if different := expected.keys() ^ arrays.keys():
        raise UserError(f"{path}: {min(different)} is in the file or in the network of the config, but not in both")
    for name, (_, variable) in expected.items():
        found = arrays[name]
        if found.shape != variable.shape or found.dtype != variable.dtype:
            required = f"{variable.dtype} {list(variable.shape)}"
            raise UserError(f"{path}: {name} should be {required}, found {found.dtype} {list(found.shape)}")
        require_finite(path, name, found)
    leaves = [(keys, variable.replace(jnp.asarray(arrays[name]))) for name, (keys, variable) in expected.items()]
    return nnx.from_flat_state(leaves)


def require_finite(path: Path, name: str, array: Shaped[np.ndarray, "..."]) -> None:
    """Raises UserError if a number is NaN or infinite. The message has the path of the file and `name`."""
    if not np.isfinite(array).all():
        raise UserError(f"{path}: {name} holds NaN or infinite values; give weights from before training diverged")


def fill_renamed(
    path: Path, config: ConfigDict, arrays: Arrays, foreign: Callable[[tuple[str | int, ...]], tuple[str, Convert]]
) -> Params:
    """Like `fill`, for arrays with the names and layouts of other software. They are converted to float32.

    foreign: called with the path of a parameter in our network; returns its name in `arrays`, and the function that
      converts to our layout.

    Raises UserError as `fill` does; an array that the network does not use is an error, too.
    """
    _, abstract = abstract_params(config)
    ours = {}
    unused = set(arrays)
    for keys, _ in nnx.to_flat_state(abstract):
        name, convert = foreign(keys)
        if name not in arrays:
            raise UserError(f"{path}: lacks {name}, which the network of the config has")
        try:
            ours[_name(keys)] = np.asarray(convert(arrays[name]), np.float32)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise UserError(
                f"{path}: {name} is not an array of the shape that its layer needs; fetch it anew"
            ) from error
        unused.discard(name)
    if unused:
        raise UserError(f"{path}: holds {min(unused)}, which the network of the config lacks")
    return _fill(path, abstract, ours)


def _name(keys: tuple[str | int, ...]) -> str:
    return ".".join(map(str, keys))
