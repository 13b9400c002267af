"""The Inception-v3 of the FID (Szegedy et al. 2015, as in pytorch-fid): images to 2048 features.

It differs from torchvision's: means over 3x3 windows do not count the padding, and the last block takes maxima instead
(pytorch-fid's FIDInceptionA, C, E_1 and E_2). Attributes have the names of the published file, so that a parameter's
path is its name there. Images are [B, H, W, C].
"""

import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from core.errors import UserError
from core.files import read_npz
from core.parallel import replicate
from models.torch_file import read_pth

FEATURES = 2048
SIZE = 299
BATCH_NORM_EPS = 1e-3


class Layer(NamedTuple):
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


def square(channels: int, size: int, stride: int = 1) -> Layer:
    return Layer(channels, (size, size), stride, "SAME" if stride == 1 else "VALID")


class Conv(nnx.Module):
    """A convolution, its batch norm folded into kernel and bias, then ReLU."""

    def __init__(self, channels: int, layer: Layer, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            channels, layer.channels, layer.kernel, strides=layer.stride, padding=layer.padding, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu(self.conv(x))


Pool = Callable[[jax.Array], jax.Array]


def mean_pool(x: jax.Array) -> jax.Array:
    return nnx.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def max_pool(x: jax.Array, stride: int = 2) -> jax.Array:
    return nnx.max_pool(x, (3, 3), (stride, stride), "SAME" if stride == 1 else "VALID")


POOL = "branch_pool"  # the branch that begins with a pool


class Mixed(nnx.Module):
    """Branches side by side, each a chain of layers; a chain may end in two layers side by side.

    The layers of a branch are called branch_1, branch_2, ..., those side by side branch_3a and branch_3b, and one that
    stands alone branch.
    """

    def __init__(self, channels: int, pool: Pool, branches: Mapping[str, list], *, rngs: nnx.Rngs):
        self.pool = pool
        self.names = []  # of each branch, the names of its layers, in groups that stand side by side
        self.channels = 0
        for branch, chain in branches.items():
            width, groups = channels, []
            for number, group in enumerate(chain, 1):
                layers = [group] if isinstance(group, Layer) else group
                stem = branch if len(chain) == 1 else f"{branch}_{number}"
                names = [stem] if len(layers) == 1 else [stem + letter for letter in "ab"]
                for name, layer in zip(names, layers, strict=True):
                    setattr(self, name, Conv(width, layer, rngs=rngs))
                width = sum(layer.channels for layer in layers)
                groups.append(tuple(names))
            self.names.append((branch, tuple(groups)))
            self.channels += width
        self.names = tuple(self.names)

    def __call__(self, x: jax.Array) -> jax.Array:
        outputs = []
        for branch, groups in self.names:
            h = self.pool(x) if branch == POOL else x
            for names in groups:
                h = jnp.concatenate([getattr(self, name)(h) for name in names], axis=-1)
            outputs.append(h)
        return jnp.concatenate(outputs, axis=-1)


def mixed_a(pooled: int) -> tuple[Pool, dict]:
    return mean_pool, {
        "branch1x1": [Layer(64)],
        "branch5x5": [Layer(48), square(64, 5)],
        "branch3x3dbl": [Layer(64), square(96, 3), square(96, 3)],
        POOL: [Layer(pooled)],
    }


def mixed_b() -> tuple[Pool, dict]:
    return max_pool, {
        "branch3x3": [square(384, 3, stride=2)],
        "branch3x3dbl": [Layer(64), square(96, 3), square(96, 3, stride=2)],
        POOL: [],
    }


def mixed_c(width: int) -> tuple[Pool, dict]:
    row, column = (1, 7), (7, 1)
    return mean_pool, {
        "branch1x1": [Layer(192)],
        "branch7x7": [Layer(width), Layer(width, row), Layer(192, column)],
        "branch7x7dbl": [Layer(width), *(Layer(width, kernel) for kernel in (column, row, column)), Layer(192, row)],
        POOL: [Layer(192)],
    }


def mixed_d() -> tuple[Pool, dict]:
    return max_pool, {
        "branch3x3": [Layer(192), square(320, 3, stride=2)],
        "branch7x7x3": [Layer(192), Layer(192, (1, 7)), Layer(192, (7, 1)), square(192, 3, stride=2)],
        POOL: [],
    }


def mixed_e(pool: Pool) -> tuple[Pool, dict]:
    both = (Layer(384, (1, 3)), Layer(384, (3, 1)))
    return pool, {
        "branch1x1": [Layer(320)],
        "branch3x3": [Layer(384), both],
        "branch3x3dbl": [Layer(448), square(384, 3), both],
        POOL: [Layer(192)],
    }


STEM = {  # name -> layer, where a pool follows it
    "Conv2d_1a_3x3": square(32, 3, stride=2),
    "Conv2d_2a_3x3": Layer(32, (3, 3), padding="VALID"),
    "Conv2d_2b_3x3": square(64, 3),
    "Conv2d_3b_1x1": Layer(80),
    "Conv2d_4a_3x3": Layer(192, (3, 3), padding="VALID"),
}
MIXED = {
    "Mixed_5b": mixed_a(32),
    "Mixed_5c": mixed_a(64),
    "Mixed_5d": mixed_a(64),
    "Mixed_6a": mixed_b(),
    "Mixed_6b": mixed_c(128),
    "Mixed_6c": mixed_c(160),
    "Mixed_6d": mixed_c(160),
    "Mixed_6e": mixed_c(192),
    "Mixed_7a": mixed_d(),
    "Mixed_7b": mixed_e(mean_pool),
    "Mixed_7c": mixed_e(functools.partial(max_pool, stride=1)),
}
POOLED = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")  # layers that a strided pool follows
TAPS = {"Conv2d_2b_3x3": 64, "Conv2d_4a_3x3": 192, "Mixed_6e": 768, "Mixed_7c": FEATURES}  # pytorch-fid's four blocks


class Inception(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        channels = 3
        for name, layer in STEM.items():
            setattr(self, name, Conv(channels, layer, rngs=rngs))
            channels = layer.channels
        for name, (pool, branches) in MIXED.items():
            block = Mixed(channels, pool, branches, rngs=rngs)
            setattr(self, name, block)
            channels = block.channels

    def __call__(self, images: jax.Array) -> jax.Array:
        """The FID's features [B, 2048] of uint8 images [B, H, W, 1 or 3] of any size."""
        return self.blocks(images)[FEATURES]

    def blocks(self, images: jax.Array) -> dict[int, jax.Array]:
        """The spatial means of pytorch-fid's four blocks by their channels: 64, 192, 768 and 2048."""
        x, means = prepare(images), {}
        for name in (*STEM, *MIXED):
            x = getattr(self, name)(x)
            x = max_pool(x) if name in POOLED else x
            if name in TAPS:
                means[TAPS[name]] = x.mean(axis=(1, 2))
        return means


def prepare(images: jax.Array) -> jax.Array:
    """uint8 [B, H, W, 1 or 3] to [B, 299, 299, 3] in [-1, 1]: grey repeated, resized as torch's F.interpolate does.

    Bilinear with half-pixel centres and without antialiasing, whatever the size.
    """
    x = images.astype(jnp.float32) / 127.5 - 1
    x = jax.image.resize(x, (len(x), SIZE, SIZE, x.shape[-1]), "bilinear", antialias=False)
    return jnp.broadcast_to(x, (*x.shape[:-1], 3))


class Network(NamedTuple):
    params: nnx.State
    digest: str  # SHA-256 of the weights


def load(path: str | Path) -> Callable[[jax.Array], jax.Array]:
    """features(uint8 [B, H, W, 1 or 3]) -> [B, 2048], jitted, on all devices, with the weights of `load_network`."""
    return features_fn(load_network(path))


def features_fn(network: Network) -> Callable[[jax.Array], jax.Array]:
    return functools.partial(_features, replicate(network.params))


@jax.jit
def _features(params: nnx.State, images: jax.Array) -> jax.Array:
    return nnx.merge(_graphdef(), params)(images)


@jax.jit
def block_means(params: nnx.State, images: jax.Array) -> dict[int, jax.Array]:
    """`Inception.blocks` with these weights."""
    return nnx.merge(_graphdef(), params).blocks(images)


@functools.cache
def _graphdef() -> nnx.GraphDef:
    return nnx.split(_abstract())[0]


def _abstract() -> Inception:
    return nnx.eval_shape(lambda: Inception(rngs=nnx.Rngs(0)))


def load_network(path: str | Path) -> Network:
    """The weights of a `.pth` as pytorch-fid publishes it, or of an .npz with the same names and layouts.

    Raises UserError where the file is damaged or is not that network.
    """
    path = Path(path)
    named = _read(path)
    network, digest = _abstract(), hashlib.sha256()
    for keys, variable in _kernels(network):
        name = ".".join(keys)
        kernel, bias = _fold(path, named, name, variable.kernel.shape)
        digest.update(kernel.tobytes() + bias.tobytes())
        variable.kernel.set_value(jnp.asarray(kernel))
        variable.bias.set_value(jnp.asarray(bias))
    return Network(nnx.state(network), digest.hexdigest())


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        return read_npz(path, required=set())
    named = read_pth(path)
    if not isinstance(named, dict):
        raise UserError(f"{path}: expected a dict of named weights, found {type(named).__name__}")
    return named


def _kernels(network: Inception) -> list[tuple[tuple[str, ...], nnx.Conv]]:
    """Every convolution with its path, in an order that is always the same."""
    return sorted(((keys, node) for keys, node in nnx.iter_graph(network) if isinstance(node, nnx.Conv)))


def _fold(path: Path, named: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The kernel [h, w, in, out] and bias [out] of a convolution and the batch norm behind it, in evaluation mode."""
    norm = name.removesuffix("conv") + "bn"
    wanted = {f"{name}.weight": (shape[3], shape[2], *shape[:2])}  # torch's order
    wanted |= {f"{norm}.{part}": shape[3:] for part in ("weight", "bias", "running_mean", "running_var")}
    for key, expected in wanted.items():
        if key not in named:
            raise UserError(f"{path}: lacks {key}: it is not the Inception of the FID")
        if np.shape(named[key]) != expected:
            raise UserError(f"{path}: {key} is {list(np.shape(named[key]))}, not {list(expected)}")
    kernel, scale, bias, mean, variance = (np.asarray(named[key], np.float64) for key in wanted)
    scale = scale / np.sqrt(variance + BATCH_NORM_EPS)
    folded = kernel.transpose(2, 3, 1, 0) * scale, bias - mean * scale
    return tuple(np.ascontiguousarray(array, np.float32) for array in folded)
