"""Arrays over all devices of all processes: batches are split, everything else is replicated; jit does the rest.

A process feeds and reads only its own rows of a batch; they lie together, in the order of the processes.
"""

import os
import sys
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from core.errors import UserError

T = TypeVar("T")


def join(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Makes this process one of several; without arguments the cluster (TPU pod, SLURM, Open MPI) says which.

    All but the first then print errors alone. To be called before JAX touches a device. Raises UserError where the
    arguments make no sense, no cluster is found, or the others do not come.
    """
    try:
        jax.distributed.initialize(
            coordinator, count, index, cluster_detection_method="deactivate" if coordinator else None
        )
    except (ValueError, TypeError, RuntimeError) as error:
        hint = "give --coordinator, --process_count and --process_id where no TPU pod, SLURM or Open MPI tells them"
        raise UserError(f"--distributed: {str(error).splitlines()[0]}; {hint}") from error
    if not is_first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, until the process ends
        os.environ["TQDM_DISABLE"] = "1"


def mesh() -> Mesh:
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ("batch",))


def is_first() -> bool:
    """Whether this process is the one that writes files and logs."""
    return jax.process_index() == 0


def replicate(tree: T) -> T:
    sharding = NamedSharding(mesh(), PartitionSpec())
    return jax.tree.map(lambda leaf: _put(leaf, sharding), tree)


def split(tree: T) -> T:
    """Each array along its first axis that is a multiple of the device count; replicated where there is none."""

    def sharding(leaf):
        whole = [length % jax.device_count() == 0 for length in leaf.shape]
        axes = ["batch" if axis == whole.index(True) else None for axis in range(len(whole))] if any(whole) else []
        return NamedSharding(mesh(), PartitionSpec(*axes))

    return jax.tree.map(lambda leaf: _put(leaf, sharding(leaf)), tree)


def _put(leaf: ArrayLike, sharding: NamedSharding) -> jax.Array:
    """As device_put, which would first send what every process has to every other, to see that they are equal."""
    if isinstance(leaf, jax.core.Tracer):
        return jax.lax.with_sharding_constraint(leaf, sharding)  # device_put is but a hint inside of jit
    if jax.process_count() == 1 or not getattr(leaf, "is_fully_addressable", True):
        return jax.device_put(leaf, sharding)
    host = np.asarray(jnp.asarray(leaf))  # of the type that JAX makes of it
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def abstract(tree: T) -> T:
    """Shapes, types and shardings of a tree of arrays to restore into; replicated where the leaves have none."""
    replicated = NamedSharding(mesh(), PartitionSpec())

    def describe(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or replicated)

    return jax.tree.map(describe, tree)


def own_rows(batch_size: int) -> slice:
    """Which rows of a batch this process feeds. Raises ValueError where the processes cannot share it evenly."""
    own, rest = divmod(batch_size, jax.process_count())
    if rest:
        raise ValueError(f"a batch of {batch_size} does not divide among {jax.process_count()} processes")
    return slice(own * jax.process_index(), own * (jax.process_index() + 1))


def shard_batch(tree: T) -> T:
    """Joins every process's own rows to one batch, split over all devices along the first axis."""
    sharding = NamedSharding(mesh(), PartitionSpec("batch"))
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), tree)


def resharded(batch: ArrayLike) -> jax.Array:
    """A batch that every process has whole, or that lies on the devices, split over all of them."""
    return _put(batch, NamedSharding(mesh(), PartitionSpec("batch")))


def all_rows(batch: jax.Array) -> np.ndarray:
    """The whole batch on every process."""
    return np.asarray(batch if batch.is_fully_addressable else multihost_utils.process_allgather(batch, tiled=True))


def gather(array: np.ndarray) -> np.ndarray:
    """The arrays of all processes, [process, ...], bit for bit: JAX itself would round float64."""
    array = np.asarray(array)
    bits = multihost_utils.process_allgather(np.frombuffer(array.tobytes(), np.uint8))
    return np.frombuffer(np.asarray(bits).tobytes(), array.dtype).reshape(-1, *array.shape)


def round_up(count: int) -> int:
    """The smallest multiple of the device count that is at least `count`."""
    return -(-count // jax.device_count()) * jax.device_count()
