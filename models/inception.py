"""The Inception-v3 network of the FID (Szegedy et al. 2015, as in pytorch-fid). It computes 2048 features of an image.

It differs from torchvision's Inception-v3 in two points: average pooling does not count the padding, and the last block
uses max pooling (pytorch-fid's FIDInceptionA, C, E_1 and E_2). The modules have the same names as in the published
file, so the path of a parameter in the network is its name in the file.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from core.errors import UserError
from core.files import read_npz
from core.parallel import replicate
from core.shapes import HostPixels, Images, Pixels
from models.torch_file import read_pth

FEATURES = 2048  # dimension of the features
SIZE = 299  # height and width to which images are resized
BATCH_NORM_EPS = 1e-3

LayerOutput = Float[Array, "batch out_height out_width out_channels"]
"""The output of a layer whose input is of type Images."""


class Layer(NamedTuple):
    """A convolution layer; `channels` are its output channels."""

    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


def square(channels: int, size: int, stride: int = 1) -> Layer:
    """Returns a layer with a square kernel. With a stride, there is no padding."""
    padding = "SAME" if stride == 1 else "VALID"
    return Layer(channels, kernel=(size, size), stride=stride, padding=padding)


class Conv(nnx.Module):
    """A convolution with its batch norm folded into kernel and bias, followed by ReLU."""

    def __init__(self, channels: int, layer: Layer, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            channels, layer.channels, layer.kernel, strides=layer.stride, padding=layer.padding, rngs=rngs
        )

    def __call__(self, x: Images) -> LayerOutput:
        return jax.nn.relu(self.conv(x))


Pool = Callable[[Images], LayerOutput]
Branches = Mapping[str, list[Layer | tuple[Layer, ...]]]


def mean_pool(x: Images) -> Images:
    """Computes means over 3x3 windows with stride 1. Padding is not counted."""
    return nnx.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def max_pool(x: Images, stride: int = 2) -> LayerOutput:
    """Computes maxima over 3x3 windows. With a stride above 1, there is no padding."""
    return nnx.max_pool(x, (3, 3), (stride, stride), "SAME" if stride == 1 else "VALID")


POOL = "branch_pool"  # the branch that starts with pooling


class Mixed(nnx.Module):
    """An Inception block: parallel branches whose outputs are concatenated.

    A branch is a list of layers applied in order. An element of the list may be a tuple of two parallel layers.

    In the published file, the layers of a branch are named branch_1, branch_2, and so on. Parallel layers are named
    branch_3a and branch_3b. If a branch has one layer, the layer has the name of the branch.

    Attributes:
      names: for each branch, its name, and a tuple of the names of the layers for each of its steps.
      channels: the number of output channels.
    """

    def __init__(self, channels: int, pool: Pool, branches: Branches, *, rngs: nnx.Rngs):
        self.pool = pool
        self.channels = 0
        branch_names = []
        for branch, chain in branches.items():
            width = channels
            groups = []
            for number, group in enumerate(chain, 1):
                layers = [group] if isinstance(group, Layer) else group
                stem = branch if len(chain) == 1 else f"{branch}_{number}"
                names = [stem] if len(layers) == 1 else [stem + letter for letter in "ab"]
                for name, layer in zip(names, layers, strict=True):
                    setattr(self, name, Conv(width, layer, rngs=rngs))
                width = sum(layer.channels for layer in layers)
                groups.append(tuple(names))
            branch_names.append((branch, tuple(groups)))
            self.channels += width
        self.names = tuple(branch_names)

    def __call__(self, x: Images) -> LayerOutput:
        outputs = []
        for branch, groups in self.names:
            h = self.pool(x) if branch == POOL else x
            for names in groups:
                h = jnp.concatenate([getattr(self, name)(h) for name in names], axis=-1)
            outputs.append(h)
        return jnp.concatenate(outputs, axis=-1)


def mixed_a(pooled: int) -> tuple[Pool, Branches]:
    """Returns block A. `pooled` is the number of channels of the pooling branch."""
    return mean_pool, {
        "branch1x1": [Layer(64)],
        "branch5x5": [Layer(48), square(64, 5)],
        "branch3x3dbl": [Layer(64), square(96, 3), square(96, 3)],
        POOL: [Layer(pooled)],
    }


def mixed_b() -> tuple[Pool, Branches]:
    """Returns block B, which halves height and width."""
    return max_pool, {
        "branch3x3": [square(384, 3, stride=2)],
        "branch3x3dbl": [Layer(64), square(96, 3), square(96, 3, stride=2)],
        POOL: [],
    }


def mixed_c(width: int) -> tuple[Pool, Branches]:
    """Returns block C. `width` is the number of channels inside the 7x7 branches."""
    row = (1, 7)
    column = (7, 1)
    return mean_pool, {
        "branch1x1": [Layer(192)],
        "branch7x7": [Layer(width), Layer(width, row), Layer(192, column)],
        "branch7x7dbl": [Layer(width), *(Layer(width, kernel) for kernel in (column, row, column)), Layer(192, row)],
        POOL: [Layer(192)],
    }


def mixed_d() -> tuple[Pool, Branches]:
    """Returns block D, which halves height and width."""
    return max_pool, {
        "branch3x3": [Layer(192), square(320, 3, stride=2)],
        "branch7x7x3": [Layer(192), Layer(192, (1, 7)), Layer(192, (7, 1)), square(192, 3, stride=2)],
        POOL: [],
    }


def mixed_e(pool: Pool) -> tuple[Pool, Branches]:
    """Returns block E, whose 3x3 branches end in two parallel layers."""
    both = (Layer(384, (1, 3)), Layer(384, (3, 1)))
    return pool, {
        "branch1x1": [Layer(320)],
        "branch3x3": [Layer(384), both],
        "branch3x3dbl": [Layer(448), square(384, 3), both],
        POOL: [Layer(192)],
    }


STEM = {
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
POOLED = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")  # layers that are followed by max pooling
# The last layers of pytorch-fid's four blocks, with their number of channels.
BLOCK_ENDS = {"Conv2d_2b_3x3": 64, "Conv2d_4a_3x3": 192, "Mixed_6e": 768, "Mixed_7c": FEATURES}


class Inception(nnx.Module):
    """The whole network, from uint8 images to features."""

    def __init__(self, *, rngs: nnx.Rngs):
        channels = 3
        for name, layer in STEM.items():
            setattr(self, name, Conv(channels, layer, rngs=rngs))
            channels = layer.channels
        for name, (pool, branches) in MIXED.items():
            block = Mixed(channels, pool, branches, rngs=rngs)
            setattr(self, name, block)
            channels = block.channels

    def __call__(self, images: Pixels | HostPixels) -> Float[Array, "batch 2048"]:
        """Computes the FID's features of grey or RGB images of any size."""
        return self.blocks(images)[FEATURES]

    def blocks(self, images: Pixels | HostPixels) -> dict[int, Float[Array, "batch _"]]:
        """Computes the spatial means after pytorch-fid's four blocks. The keys are the channels: 64, 192, 768, 2048."""
        x = prepare(images)
        means = {}
        for name in (*STEM, *MIXED):
            x = getattr(self, name)(x)
            x = max_pool(x) if name in POOLED else x
            if name in BLOCK_ENDS:
                means[BLOCK_ENDS[name]] = x.mean(axis=(1, 2))
        return means


def prepare(images: Pixels | HostPixels) -> Float[Array, "batch 299 299 3"]:
    """Scales grey or RGB images to [-1, 1], resizes them to 299 x 299 and repeats a grey channel three times.

    The resize is bilinear with half-pixel centres and without antialiasing, like torch's F.interpolate.
    """
    x = images.astype(jnp.float32) / 127.5 - 1
    x = jax.image.resize(x, (len(x), SIZE, SIZE, x.shape[-1]), "bilinear", antialias=False)
    return jnp.broadcast_to(x, (*x.shape[:-1], 3))


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """The FID's feature extractor: a jitted function of images that runs on all devices.

    Attributes:
      params: the weights, replicated on every device.
      digest: SHA-256 of the weights, after batch norms are folded into the convolutions.
    """

    params: nnx.State
    digest: str

    def __call__(self, images: Pixels | HostPixels) -> Float[Array, "batch 2048"]:
        """Computes the features of grey or RGB images of any size."""
        return _features(self.params, images)


def load(path: str | Path) -> Network:
    """Loads the feature extractor with the weights of a file.

    path: the .pth that pytorch-fid publishes, or an .npz with the same names and layouts.

    Raises UserError if the file is damaged or holds another network.
    """
    path = Path(path)
    named = _read(path)
    network = _abstract()
    sha256 = hashlib.sha256()
    for keys, variable in _convolutions(network):
        kernel, bias = _fold(path, named, name=".".join(keys), shape=variable.kernel.shape)
        sha256.update(kernel.tobytes() + bias.tobytes())
        variable.kernel.set_value(jnp.asarray(kernel))
        variable.bias.set_value(jnp.asarray(bias))
    return Network(replicate(nnx.state(network)), sha256.hexdigest())


@jax.jit
def _features(params: nnx.State, images: Pixels | HostPixels) -> Float[Array, "batch 2048"]:
    return nnx.merge(_graphdef(), params)(images)


@functools.cache
def _graphdef() -> nnx.GraphDef:
    return nnx.split(_abstract())[0]


def _abstract() -> Inception:
    """Returns the network with shapes in place of values."""
    return nnx.eval_shape(lambda: Inception(rngs=nnx.Rngs(0)))


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        return read_npz(path, required=set())
    named = read_pth(path)
    if not isinstance(named, dict):
        raise UserError(f"{path}: expected a dict of named weights, found {type(named).__name__}")
    return named


def _convolutions(network: Inception) -> list[tuple[tuple[str, ...], nnx.Conv]]:
    """Returns every convolution with its path, in a fixed order."""
    return sorted(((keys, node) for keys, node in nnx.iter_graph(network) if isinstance(node, nnx.Conv)))


def _fold(
    path: Path, named: Mapping[str, Any], name: str, shape: tuple[int, ...]
) -> tuple[Float[np.ndarray, "height width channels out_channels"], Float[np.ndarray, "out_channels"]]:
    """Returns kernel and bias of the convolution `name`, with the batch norm after it folded in."""
    norm = name.removesuffix("conv") + "bn"
    height, width, channels, out_channels = shape
    expected = {f"{name}.weight": (out_channels, channels, height, width)}  # torch's layout
    expected |= {f"{norm}.{part}": (out_channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    for key, expected_shape in expected.items():
        if key not in named:
            raise UserError(f"{path}: lacks {key}: it is not the Inception of the FID")
        if np.shape(named[key]) != expected_shape:
            raise UserError(f"{path}: {key} is {list(np.shape(named[key]))}, not {list(expected_shape)}")
    kernel, scale, bias, mean, variance = (np.asarray(named[key], np.float64) for key in expected)
    scale = scale / np.sqrt(variance + BATCH_NORM_EPS)
    folded_kernel = kernel.transpose(2, 3, 1, 0) * scale
    folded_bias = bias - mean * scale
    return np.ascontiguousarray(folded_kernel, np.float32), np.ascontiguousarray(folded_bias, np.float32)
