"""Features of an untrained convolutional network with fixed random weights, which are drawn from a fixed seed.

For data unlike ImageNet, Naeem et al. (2020, arXiv 2002.09797) compare samples in the features of a random network.
Such features need no labels and no download. The features are the activations of the last layer, averaged over the
image. They measure how often local patterns occur.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from core.shapes import Pixels

SEED = 0
CHANNELS = 64
LAYERS = 3  # the first layer keeps the size of the image, each later layer halves it
FEATURES = CHANNELS
SCALE = 10  # a factor of the features, so that small distances are not printed as 0.00

Kernels = list[Float32[np.ndarray, "3 3 in_channels out_channels"]]


def kernels() -> Kernels:
    """Draws the weights of the layers: normal, with the variance of He et al. (2015).

    NumPy guarantees that RandomState gives the same numbers in all versions.
    """
    rng = np.random.RandomState(SEED)
    shapes = [(3, 3, 3 if layer == 0 else CHANNELS, CHANNELS) for layer in range(LAYERS)]
    return [np.float32(rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))) for shape in shapes]


def digest(layers: Kernels) -> str:
    """Returns the SHA-256 of the weights."""
    return hashlib.sha256(b"".join(kernel.tobytes() for kernel in layers)).hexdigest()


def features(layers: Kernels, images: Pixels) -> Float[Array, "batch features"]:
    """Returns the mean activations of the last layer, times SCALE. A grey channel is repeated three times."""
    x = jnp.broadcast_to(images.astype(jnp.float32) / 127.5 - 1, (*images.shape[:3], 3))
    for layer, kernel in enumerate(layers):
        strides = (2, 2) if layer else (1, 1)
        x = jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(x)
    return SCALE * x.mean(axis=(1, 2))
