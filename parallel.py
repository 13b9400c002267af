"""Arrays over all devices: batches are split, everything else is replicated; jit does the rest."""

from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")


def mesh() -> Mesh:
    return Mesh(np.array(jax.devices()), ("batch",))


def replicate(tree: T) -> T:
    return jax.device_put(tree, NamedSharding(mesh(), PartitionSpec()))


def replicated_like(tree: T) -> T:
    """The shapes and types of a tree of arrays, as replicated arrays to restore into."""
    sharding = NamedSharding(mesh(), PartitionSpec())
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def shard_batch(tree: T) -> T:
    """Splits the first axis, whose length must be a multiple of the device count."""
    return jax.device_put(tree, NamedSharding(mesh(), PartitionSpec("batch")))


def round_up(count: int) -> int:
    """The smallest multiple of the device count that is at least `count`."""
    return -(-count // jax.device_count()) * jax.device_count()
