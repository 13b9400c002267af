"""Array types that travel between modules, as jaxtyping annotations; `make test-types` checks them at run time."""

import numpy as np
from jaxtyping import Array, Float, Integer, Key, Real, Shaped, UInt8

Images = Float[Array | np.ndarray, "batch height width channels"]
"""Images in the network's range, or noise or predictions of their shape."""

Pixels = UInt8[Array | np.ndarray, "batch height width channels"]
"""Grey or colour levels 0..255."""

HostPixels = UInt8[np.ndarray, "batch height width channels"]
"""Levels in host memory, or mapped into it."""

HostImages = HostPixels | Float[np.ndarray, "batch height width channels"]
"""Levels, or latents in the network's range, in host memory."""

Timesteps = Real[Array | np.ndarray, "steps"]
"""A time grid, descending; integers, or real times."""

Labels = Integer[Array | np.ndarray, "batch"] | Float[Array | np.ndarray, "batch classes"]
"""The class of each image: its number, or a row of weights of all classes."""

Vectors = Float[np.ndarray, "batch dim"]
"""Feature vectors, or images laid out as vectors, in host memory."""

Keys = Key[Array, "batch"]
"""One random key per image."""

RandomKey = Key[Array, ""]

AnyArray = Shaped[Array | np.ndarray, "..."]
"""An array of any shape and type."""

ImageShape = tuple[int, int, int]
"""(height, width, channels)."""
