"""Features of an untrained network: convolutions with fixed random weights, shipped by their seed.

Naeem et al. (2020, arXiv 2002.09797) compare samples in the features of a random network where the data are unlike
ImageNet. Such features need no labels and no download. Mean activations over the image make them moments of its local
patterns: of edges and colours in the first layer, of larger shapes in the later ones.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from core.shapes import Pixels

SEED = 0
CHANNELS = 64
LAYERS = 3  # the first keeps the size of the image, each of the others halves it
FEATURES = CHANNELS
SCALE = 10  # of the features, so that distances are not printed as 0.00

Kernels = list[Float32[np.ndarray, "3 3 in_channels out_channels"]]


def kernels() -> Kernels:
    """The weights of the layers: normal, with the variance of He et al. (2015).

    numpy promises that RandomState gives the same numbers in all versions.
    """
    rng = np.random.RandomState(SEED)
    shapes = [(3, 3, 3 if layer == 0 else CHANNELS, CHANNELS) for layer in range(LAYERS)]
    return [np.float32(rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))) for shape in shapes]


def digest(layers: Kernels) -> str:
    """The SHA-256 of the weights."""
    return hashlib.sha256(b"".join(kernel.tobytes() for kernel in layers)).hexdigest()


def features(layers: Kernels, images: Pixels) -> Float[Array, "batch features"]:
    """The mean activations of the last layer, times SCALE. Grey images have three equal channels here."""
    x = jnp.broadcast_to(images.astype(jnp.float32) / 127.5 - 1, (*images.shape[:3], 3))
    for layer, kernel in enumerate(layers):
        strides = (2, 2) if layer else (1, 1)
        x = jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(x)
    return SCALE * x.mean(axis=(1, 2))
