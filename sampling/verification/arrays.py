"""Arrays of NumPy, JAX and PyTorch. The libraries are imported only if a sampler uses them."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

HostFunction = Callable[[Shaped[np.ndarray, "..."], Shaped[np.ndarray, "..."]], Float[np.ndarray, "..."]]


def library_of(annotation: Any) -> str:
    """The array library of a type, of a jaxtyping annotation or of a name: "torch", "jax" or, for others, "numpy"."""
    annotation = getattr(annotation, "array_type", annotation)
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__module__", "")
    return {"torch": "torch", "jax": "jax", "jaxlib": "jax", "jnp": "jax"}.get(name.split(".")[0], "numpy")


def to_library(library: str, array: Shaped[np.ndarray, "..."]) -> Any:
    """The array as an array of the library."""
    match library:
        case "torch":
            import torch

            return torch.from_numpy(np.array(array))
        case "jax":
            import jax.numpy as jnp

            return jnp.asarray(array)
    return np.array(array)  # a copy, which the sampler may change


def to_numpy(array: Any) -> Shaped[np.ndarray, "..."]:
    """An array of any library, or a number, as an array of NumPy. A tensor may be on a GPU, or need gradients."""
    return np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)


def on_host(function: HostFunction, x: Any, t: Any) -> Any:
    """function(x, t) as the kind of array that x is, of its dtype and shape. JAX may trace this call."""
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
    """JAX in float64, in all threads: `jax.enable_x64` would leave out those in which callbacks run."""
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
