"""Conversions between arrays of NumPy, JAX and PyTorch. JAX and PyTorch are imported only if a sampler uses them."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

HostFunction = Callable[[Shaped[np.ndarray, "..."], Shaped[np.ndarray, "..."]], Float[np.ndarray, "..."]]


def library_of(annotation: Any) -> str:
    """Returns the array library of an annotation: "torch", "jax", or "numpy" for anything else.

    The annotation may be a type, a jaxtyping annotation or a string.
    """
    annotation = getattr(annotation, "array_type", annotation)
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__module__", "")
    return {"torch": "torch", "jax": "jax", "jaxlib": "jax", "jnp": "jax"}.get(name.split(".")[0], "numpy")


def to_library(library: str, array: Shaped[np.ndarray, "..."]) -> Any:
    """Converts a NumPy array to an array of the library."""
    match library:
        case "torch":
            import torch

            return torch.from_numpy(np.array(array))
        case "jax":
            import jax.numpy as jnp

            return jnp.asarray(array)
    return np.array(array)  # a copy, which the sampler may change


def to_numpy(array: Any) -> Shaped[np.ndarray, "..."]:
    """Converts an array of any library, or a number, to NumPy. A tensor may be on a GPU, or need gradients."""
    return np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)


def call_with_numpy(function: HostFunction, x: Any, t: Any) -> Any:
    """Calls `function` with x and t as NumPy arrays. Returns the result as an array of the same library as x.

    For PyTorch and JAX, the result also has the dtype of x. JAX may trace this call.
    """
    match type(x).__module__.split(".")[0]:
        case "torch":
            return x.new_tensor(function(to_numpy(x), to_numpy(t)))
        case "jax" | "jaxlib":
            import jax
            import jax.numpy as jnp
            from jax.experimental import io_callback

            return io_callback(function, jax.ShapeDtypeStruct(x.shape, x.dtype), x, jnp.asarray(t, x.dtype))
    return function(x, t)


@contextlib.contextmanager
def float64(library: str) -> Iterator[None]:
    """Makes JAX use float64 in all threads. `jax.enable_x64` does not reach the threads in which callbacks run."""
    if library != "jax":
        yield
        return
    import jax

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)
