"""Arrays over all devices of all processes: batches are split, everything else is replicated; jit does the rest.

A process feeds and reads only its own rows of a batch; they lie together, in the order of the processes.
"""

from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")


def mesh() -> Mesh:
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ("batch",))


def is_first() -> bool:
    """Whether this process is the one that writes files and logs."""
    return jax.process_index() == 0


def replicate(tree: T) -> T:
    return jax.device_put(tree, NamedSharding(mesh(), PartitionSpec()))


def split(tree: T) -> T:
    """Each array along its first axis that is a multiple of the device count; replicated where there is none."""

    def sharding(leaf):
        whole = [length % jax.device_count() == 0 for length in leaf.shape]
        axes = ["batch" if axis == whole.index(True) else None for axis in range(len(whole))] if any(whole) else []
        return NamedSharding(mesh(), PartitionSpec(*axes))

    return jax.device_put(tree, jax.tree.map(sharding, tree))


def abstract(tree: T) -> T:
    """Shapes, types and shardings of a tree of arrays to restore into; replicated where the leaves have none."""
    replicated = NamedSharding(mesh(), PartitionSpec())

    def describe(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or replicated)

    return jax.tree.map(describe, tree)


def own_rows(batch_size: int) -> slice:
    """Which rows of a batch this process feeds; batch_size must be a multiple of the device count."""
    own = batch_size // jax.process_count()
    return slice(own * jax.process_index(), own * (jax.process_index() + 1))


def shard_batch(tree: T) -> T:
    """Joins every process's own rows to one batch, split over all devices along the first axis."""
    sharding = NamedSharding(mesh(), PartitionSpec("batch"))
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), tree)


def local_rows(batch: jax.Array) -> np.ndarray:
    """This process's own rows of what was made from such a batch."""
    if batch.is_fully_addressable:
        return np.asarray(batch)
    shards = sorted(batch.addressable_shards, key=lambda shard: shard.index[0].start)
    return np.concatenate([shard.data for shard in shards])


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
