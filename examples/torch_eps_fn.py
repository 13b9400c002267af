"""Uses a PyTorch network as the noise prediction of this project's samplers, without importing its weights.

python -m examples.torch_eps_fn UNET_FOLDER

Needs requirements-diffusers.txt. UNET_FOLDER has a UNet2DModel for grey images of 8x8 pixels, such as --mode=export
writes for digits. The program draws digits from a late start, and prints how much time the calls through JAX add.
"""

import functools
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
import torch
from jaxtyping import Array, Float
from sklearn.datasets import load_digits

import sampling
from core.diffusion import Denoiser, NoiseSchedule
from core.shapes import Images
from sampling.late_start import DataGaussian
from sampling.time_grid import time_grid

SCHEDULE = NoiseSchedule.linear()
COUNT = 64
N_STEPS, T_START = 10, 400


def torch_eps_fn(
    network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Callable[[Images, Float[Array, "batch"]], Images]:
    """Returns an eps_fn(x, t) for `Denoiser` that calls network(x, t) once per batch, with x in NCHW and float32.

    t has one value per image and need not be an integer: half steps of PNDM, `ode`, the likelihood and
    `Denoiser.denoise` use other times. With PNDM and at most 3 steps, t may be -1 (clean data). A network that looks t
    up in a table must round it and replace -1 by 0.
    """

    def on_host(x: Images, t: Float[Array, "batch"]) -> Images:
        with torch.inference_mode():
            images = torch.from_numpy(np.array(x, np.float32)).permute(0, 3, 1, 2)
            eps = network(images, torch.from_numpy(np.array(t, np.float32)))
        return np.ascontiguousarray(eps.permute(0, 2, 3, 1).cpu().numpy(), x.dtype)

    def eps_fn(x: Images, t: Float[Array, "batch"]) -> Images:
        return jax.pure_callback(on_host, jax.ShapeDtypeStruct(x.shape, x.dtype), x, t, vmap_method="sequential")

    return eps_fn


def main(folder: str) -> None:
    """Draws digits with calls of PyTorch through JAX, and times the same number of calls without JAX."""
    from diffusers import UNet2DModel

    unet = UNet2DModel.from_pretrained(folder).eval()
    images = load_digits().images[..., None] / 8 - 1  # in [-1, 1], the range in which the network was trained
    gaussian = DataGaussian.fit([images.astype(np.float32)])
    denoiser = Denoiser(torch_eps_fn(lambda x, t: unet(x, t).sample), SCHEDULE)
    noise = jax.random.normal(jax.random.key(0), (COUNT, *images.shape[1:]))
    sample = jax.jit(functools.partial(sampling.sample, "ddim", denoiser))
    x = gaussian.sample(noise, SCHEDULE.alpha_bar(T_START))

    through_jax = seconds(lambda: jax.block_until_ready(sample(x, time_grid(N_STEPS, T_START))))
    batch, t = torch.zeros(COUNT, 1, 8, 8), torch.zeros(COUNT)
    with torch.inference_mode():
        alone = seconds(lambda: [unet(batch, t) for _ in range(N_STEPS)])
    print(f"{N_STEPS} steps of DDIM, {COUNT} images: {through_jax:.3f} s; the network calls alone: {alone:.3f} s")


def seconds(function: Callable[[], object], repeats: int = 5) -> float:
    """Returns the shortest time of several calls. A first call is not timed."""
    function()
    durations = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        durations.append(time.perf_counter() - began)
    return min(durations)


if __name__ == "__main__":
    main(sys.argv[1])
