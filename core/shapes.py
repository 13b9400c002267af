"""Array types that modules share, as jaxtyping annotations. `make test-types` checks them at run time."""

import numpy as np
from jaxtyping import Array, Float, Integer, Key, Real, Shaped, UInt8

Images = Float[Array | np.ndarray, "batch height width channels"]
"""Images in the network's range, or noise or predictions of the same shape."""

Pixels = UInt8[Array | np.ndarray, "batch height width channels"]
"""Grey or colour levels 0..255."""

HostPixels = UInt8[np.ndarray, "batch height width channels"]
"""Pixels in host memory, or in a memory-mapped file."""

HostImages = HostPixels | Float[np.ndarray, "batch height width channels"]
"""Images as levels, or latents in the network's range; in host memory."""

Timesteps = Real[Array | np.ndarray, "steps"]
"""A descending time grid of integers or real numbers."""

Labels = Integer[Array | np.ndarray, "batch"] | Float[Array | np.ndarray, "batch classes"]
"""The class of each image, as a number or as a row of weights over all classes."""

Vectors = Float[np.ndarray, "batch dim"]
"""Feature vectors or flattened images, in host memory."""

Keys = Key[Array, "batch"]
"""One random key per image."""

RandomKey = Key[Array, ""]

AnyArray = Shaped[Array | np.ndarray, "..."]
"""An array of any shape and type."""

ImageShape = tuple[int, int, int]
"""(height, width, channels)."""
