"""Several devices and processes: batches are split over all devices, and other arrays are replicated or split.

Each process loads and reads only its own rows of a batch. These rows are contiguous, in the order of the processes.
"""

import os
import sys
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Shaped

from core.arithmetic import ceil_div
from core.errors import UserError

T = TypeVar("T")


def join(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Makes this process one of several. Call it before JAX uses a device.

    coordinator: address of the first process. count: number of processes. index: index of this process. If they are
    None, the cluster (TPU pod, SLURM, Open MPI) provides the values. After this call only the first process prints
    anything except errors. Raises UserError if the arguments are invalid, no cluster is found, the other processes do
    not connect, or there is no device.
    """
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator,
            num_processes=count,
            process_id=index,
            cluster_detection_method="deactivate" if coordinator else None,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        hint = "give --coordinator, --process_count and --process_id unless a TPU pod, SLURM or Open MPI sets them"
        raise UserError(f"--distributed: {str(error).splitlines()[0]}; {hint}") from error
    require_devices()
    if not is_first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, stays open until the process ends
        os.environ["TQDM_DISABLE"] = "1"


def require_devices() -> None:
    """Raises UserError if JAX finds no device because the user selected a backend that cannot start here."""
    try:
        jax.devices()
    except Exception as error:  # JAX raises RuntimeError or AssertionError, and plugins raise any type
        names = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")
        settings = " ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ) or names[0]
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        hint = "unset the variable, or set it to cpu"
        raise UserError(f"{settings}: JAX cannot start this backend here ({reason}): {hint}") from error


def mesh() -> Mesh:
    """All devices of all processes along one axis, `batch`, ordered by process."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ("batch",))


def is_first() -> bool:
    """Whether this is the process that writes files and logs."""
    return jax.process_index() == 0


def replicate(tree: T) -> T:
    """A copy of every array on every device."""
    sharding = NamedSharding(mesh(), PartitionSpec())
    return jax.tree.map(lambda leaf: _put(leaf, sharding), tree)


def split(tree: T) -> T:
    """Splits each array along its first axis that the device count divides; replicates arrays without such an axis."""
    return jax.tree.map(lambda leaf: _put(leaf, _split_sharding(leaf.shape)), tree)


def _split_sharding(shape: Sequence[int]) -> NamedSharding:
    axes = [None] * len(shape)
    for axis, length in enumerate(shape):
        if length % jax.device_count() == 0:
            axes[axis] = "batch"
            return NamedSharding(mesh(), PartitionSpec(*axes))
    return NamedSharding(mesh(), PartitionSpec())


def _put(leaf: ArrayLike, sharding: NamedSharding) -> jax.Array:
    """Like jax.device_put, but without the check that all processes hold equal values.

    That check would send the array to every process.
    """
    if isinstance(leaf, jax.core.Tracer):
        return jax.lax.with_sharding_constraint(leaf, sharding)  # inside of jit, device_put is only a hint
    if jax.process_count() == 1 or not getattr(leaf, "is_fully_addressable", True):
        return jax.device_put(leaf, sharding)
    host = np.asarray(jnp.asarray(leaf))  # with JAX's dtype
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def abstract(tree: T) -> T:
    """The shapes, dtypes and shardings of a tree of arrays, which orbax needs to restore the tree.

    Arrays without a sharding are restored as replicated arrays.
    """
    replicated = NamedSharding(mesh(), PartitionSpec())

    def describe(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or replicated)

    return jax.tree.map(describe, tree)


def own_rows(batch_size: int) -> slice:
    """The rows of a batch that this process loads.

    Raises ValueError if batch_size is not a multiple of the number of processes.
    """
    own, rest = divmod(batch_size, jax.process_count())
    if rest:
        raise ValueError(f"a batch of {batch_size} does not divide among {jax.process_count()} processes")
    return slice(own * jax.process_index(), own * (jax.process_index() + 1))


def shard_batch(tree: T) -> T:
    """Joins the rows loaded by each process into one batch, which is split over all devices along the first axis."""
    sharding = NamedSharding(mesh(), PartitionSpec("batch"))
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), tree)


def resharded(batch: ArrayLike) -> Shaped[Array, "batch ..."]:
    """Splits a batch, which is replicated or on one device, over all devices."""
    return _put(batch, NamedSharding(mesh(), PartitionSpec("batch")))


def all_rows(batch: Shaped[Array, "batch ..."]) -> Shaped[np.ndarray, "batch ..."]:
    """The whole batch in the host memory of every process."""
    return np.asarray(batch if batch.is_fully_addressable else multihost_utils.process_allgather(batch, tiled=True))


def gather(array: ArrayLike) -> Shaped[np.ndarray, "process ..."]:
    """The arrays of all processes, stacked. They are transferred as bytes, because JAX would round float64."""
    array = np.asarray(array)
    as_bytes = multihost_utils.process_allgather(np.frombuffer(array.tobytes(), np.uint8))
    return np.frombuffer(np.asarray(as_bytes).tobytes(), array.dtype).reshape(-1, *array.shape)


def round_up(count: int) -> int:
    """The smallest multiple of the device count that is at least `count`."""
    return ceil_div(count, jax.device_count()) * jax.device_count()
