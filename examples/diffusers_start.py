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
    """Returns x at alpha_bar = ab for noise [B, H * W * C]; with x0=True, the mixture's prediction of x_0 at that x."""
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


def predicted(row, output, x, ab):
    """Returns x_0 for the network's output (noise or v) for x at alpha_bar = ab."""
    is_eps = row["options"]["prediction_type"] == "epsilon"
    return (x - (1 - ab) ** 0.5 * output) / ab**0.5 if is_eps else ab**0.5 * x - (1 - ab) ** 0.5 * output


@torch.no_grad()
def sample(header, arrays, network, noise, component, name=None):
    """Returns images [B, C, H, W] for noise [B, H * W * C]. network(x, t) returns noise or v."""
    row, times, level = header["schedulers"][name or header["sampler"]], header["timesteps"], header["alpha_bar"]
    x = draw(header, arrays, noise, component, level) / (1 if row["state"] == "x" else level**0.5)
    if row["class"] is None:  # DDIM
        for t, ab, after in zip(times, header["alpha_bars"], [*header["alpha_bars"][1:], 1.0], strict=True):
            x0 = predicted(row, network(x, t), x=x, ab=ab)
            x = after**0.5 * x0 + ((1 - after) / (1 - ab)) ** 0.5 * (x - ab**0.5 * x0)
        return x
    scheduler = getattr(diffusers, row["class"])(trained_betas=arrays["betas"], **row["options"])
    if row["state"] == "x / signal":
        scheduler.set_timesteps(timesteps=times)
    else:  # UniPC's set_timesteps takes no times, and the time of the history need not be an integer
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
        output = network(scheduler.scale_model_input(x, t), t)
        if row["history"] and scheduler.step_index is None:  # the first step
            scheduler.model_outputs[-1] = predicted(row, output, x=x, ab=level) + change
        x = scheduler.step(output, t, x).prev_sample
    return x


def load(path):
    header = json.loads(safe_open(path, "np").metadata()["start"])
    if header["version"] != 1:
        raise ValueError(f"{path} has version {header['version']} of the format; this program reads version 1")
    return header, load_file(path)


if __name__ == "__main__":
    header, arrays = load(sys.argv[1])
    unet, rng = diffusers.UNet2DModel.from_pretrained(sys.argv[2]), np.random.default_rng(0)
    component = rng.choice(len(arrays["weights"]), 16, p=np.float64(arrays["weights"]) / arrays["weights"].sum())
    noise = rng.standard_normal((16, len(arrays["mean"])), np.float32)
    np.save("images.npy", sample(header, arrays, lambda x, t: unet(x, t).sample, noise, component, *sys.argv[3:]))
