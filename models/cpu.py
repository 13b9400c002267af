"""What makes the network fast on a CPU. Importing this sets an XLA flag, before JAX touches a device.

By default XLA 0.10 hands convolutions, products and reductions to YNNPACK, which took half of all time here: without
it a training step of digits fell from 148 to 89 ms, one of 28x28 images from 3.2 to 1.2 s. Left to itself, XLA runs
Eigen's parallel convolutions, for gradients too; none of our own (nine products of shifted images, one product of
patches) came near them. The flag says nothing to other backends.

What is left is sums over pixels, which XLA reads a channel at a time and on one core: in GroupNorm, in its gradient
and in the gradient of everything that is added to all pixels alike. As products with ones they cost a fifth.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np

FLAG = "--xla_cpu_experimental_ynn_fusion_type"

if FLAG not in os.environ.get("XLA_FLAGS", ""):  # the user's own choice stands
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}=".strip()

# TAPS[p, a, i] is 1 where row i of a 3x3 kernel, centred on row 2r + p of an image doubled by repeating, meets row
# r + a + p - 1 of the image itself.
TAPS = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.int8)


def doubled_conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The 3x3 convolution of x [B,H,W,C] after doubling by repeating pixels: [B,2H,2W,O], for kernel [3,3,C,O].

    Repeated pixels share their weights' sum, so every parity (p, q) of the output's rows and columns is a 2x2
    convolution of x: 4/9 of the products, and gradients in half the time.
    """
    b, h, w, _ = x.shape
    kernels = jnp.einsum("pai,qbj,ijco->pqabco", TAPS, TAPS, kernel.astype(jnp.result_type(x, kernel)))

    def parity(p, q):
        padding = ((1 - p, p), (1 - q, q))
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x.astype(kernels.dtype), kernels[p, q], (1, 1), padding, dimension_numbers=dimensions
        )

    rows = [jnp.stack([parity(p, 0), parity(p, 1)], axis=3) for p in (0, 1)]
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, -1)


def pixel_sums(x: jax.Array) -> jax.Array:
    """x [B,P,C] summed over P: [B,C]."""
    ones = jnp.ones((len(x), 1, x.shape[1]), x.dtype)
    return jax.lax.dot_general(ones, x, (((2,), (1,)), ((0,), (0,))))[:, 0]


def to_pixels(values: jax.Array, like: jax.Array) -> jax.Array:
    """values [B,C] or [C] at every pixel of like [B,P,C]; its gradient is `pixel_sums`."""
    b, p, c = like.shape
    values = jnp.broadcast_to(values, (b, c)).astype(like.dtype)
    return jax.lax.dot_general(jnp.ones((b, p, 1), like.dtype), values[:, None], (((2,), (1,)), ((0,), (0,))))


def add_to_pixels(x: jax.Array, values: jax.Array) -> jax.Array:
    """x [B,...,C] + values [B,C] or [C]."""
    flat = x.reshape(len(x), -1, x.shape[-1])
    return (flat + to_pixels(values, flat)).reshape(x.shape)


def group_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float) -> jax.Array:
    """GroupNorm (Wu and He 2018) of x [B,...,C], in float32 at least."""
    flat = x.reshape(len(x), -1, x.shape[-1]).astype(jnp.promote_types(x.dtype, jnp.float32))
    b, p, c = flat.shape

    def group_means(images):
        means = pixel_sums(images).reshape(b, groups, c // groups).mean(axis=2) / p
        return jnp.repeat(means, c // groups, axis=1)

    mean = group_means(flat)
    variance = jnp.maximum(group_means(flat**2) - mean**2, 0)
    slope = jax.lax.rsqrt(variance + epsilon) * scale
    normalized = flat * to_pixels(slope, flat) + to_pixels(bias - mean * slope, flat)
    return normalized.astype(x.dtype).reshape(x.shape)
