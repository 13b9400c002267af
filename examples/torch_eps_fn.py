"""A PyTorch network as the noise prediction of this project's samplers, without importing its weights.

python -m examples.torch_eps_fn UNET_FOLDER

Needs requirements-diffusers.txt. UNET_FOLDER holds a UNet2DModel of grey images of 8x8 pixels, such as --mode=export
writes for the digits. The program draws digits from a late start, and prints what calling PyTorch from JAX costs.
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
    """An eps_fn(x, t) for `Denoiser` that calls network(x, t), with x in NCHW and float32, once for the whole batch.

    t has one value per image. It is real and may lie between whole numbers: PNDM's half steps, `ode`, the likelihood
    and `Denoiser.denoise` use such times. It is -1, clean data, in the last stage of PNDM's opening if there are at
    most 3 steps. A network that looks t up in a table must round it, and limit it to 0.
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
    """Draws digits with each PyTorch call made through JAX, and times the same calls in PyTorch alone."""
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
    """The shortest duration of several calls, after one that is not timed."""
    function()
    durations = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        durations.append(time.perf_counter() - began)
    return min(durations)


if __name__ == "__main__":
    main(sys.argv[1])
