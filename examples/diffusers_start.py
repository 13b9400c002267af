"""A late start in diffusers: draws x from the file that --mode=export --what=start wrote, and denoises it.

python examples/diffusers_start.py start.safetensors UNET_FOLDER [SCHEDULER]

This script needs numpy, torch, diffusers and safetensors, but nothing of this repository. docs/start_file.md describes
the file.
"""

import json
import sys

import diffusers
import numpy as np
import torch
from safetensors.numpy import load_file, safe_open


def draw(header, arrays, noise, component, ab, x0=False):
    """Returns x at alpha_bar = ab for noise [B, H * W * C], or with `x0` the mixture's prediction of x_0 there."""
    x = np.empty_like(noise)
    for c in np.unique(component):
        variances = np.append(arrays["variances"][c], arrays["residual_variances"][c])
        scales = (ab * variances + 1 - ab) ** 0.5
        scales = ab**0.5 * variances / scales if x0 else scales
        basis, turn, z = arrays["eigenvectors"].copy(), arrays["rotations"][c], noise[component == c]
        mean = arrays["mean"] + basis @ arrays["means"][c]
        basis[:, : len(turn)] = basis[:, : len(turn)] @ turn
        inside = z @ basis * (scales[:-1] - scales[-1])
        x[component == c] = (1 if x0 else ab**0.5) * mean + scales[-1] * z + inside @ basis.T
    return torch.from_numpy(x.reshape(-1, *header["image_shape"])).permute(0, 3, 1, 2).contiguous()  # NHWC to NCHW


@torch.no_grad()
def sample(header, arrays, eps, noise, component, name=None):
    """Returns images [B, C, H, W] for noise [B, H * W * C]. eps(x, t) predicts noise; name is a key of `schedulers`."""
    row, times = header["schedulers"][name or header["sampler"]], header["timesteps"]
    level = header["alpha_bar"]
    x = draw(header, arrays, noise, component, level)
    if row["class"] is None:  # DDIM
        for t, ab, after in zip(times, header["alpha_bars"], [*header["alpha_bars"][1:], 1.0], strict=True):
            e = eps(x, t)
            x = (after / ab) ** 0.5 * (x - (1 - ab) ** 0.5 * e) + (1 - after) ** 0.5 * e
        return x
    scheduler = getattr(diffusers, row["class"])(trained_betas=arrays["betas"], **row["options"])
    if row["state"] == "x / signal":
        scheduler.set_timesteps(timesteps=times)
        x = x / level**0.5
    else:  # sets timesteps and sigmas directly, because UniPC takes no times and a history may lie between times
        above = [header["history"]["sigma"]] if row["history"] else []
        scheduler.set_timesteps(len(above) + len(times))
        scheduler.timesteps = torch.tensor(times[: len(above)] + times)
        scheduler.sigmas = torch.tensor([*above, *header["sigmas"], 0.0])
        if row["history"]:
            scheduler.set_begin_index(1)
            scheduler.lower_order_nums = 1
            change = draw(header, arrays, noise, component, header["history"]["alpha_bar"], x0=True)
            change -= draw(header, arrays, noise, component, level, x0=True)
    for t in scheduler.timesteps[int(row["history"]) :]:
        e = eps(scheduler.scale_model_input(x, t), t)
        if row["history"] and scheduler.step_index is None:  # the first step
            scheduler.model_outputs[-1] = (x - (1 - level) ** 0.5 * e) / level**0.5 + change
        x = scheduler.step(e, t, x).prev_sample
    return x


def load(path):
    with safe_open(path, "np") as file:
        header = json.loads(file.metadata()["start"])
    if header["version"] != 1:
        raise ValueError(f"{path} has version {header['version']} of the format; this program reads version 1")
    return header, load_file(path)


if __name__ == "__main__":
    header, arrays = load(sys.argv[1])
    unet, rng = diffusers.UNet2DModel.from_pretrained(sys.argv[2]), np.random.default_rng(0)
    component = rng.choice(len(arrays["weights"]), 16, p=np.float64(arrays["weights"]) / arrays["weights"].sum())
    noise = rng.standard_normal((16, len(arrays["mean"])), np.float32)
    np.save("images.npy", sample(header, arrays, lambda x, t: unet(x, t).sample, noise, component, *sys.argv[3:]))
