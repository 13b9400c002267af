"""The sampling loop of diffusers' pipelines, for the comparison in sampling.py.

python -m benchmarks.torch_samplers FOLDER BATCH N_STEPS

sampling.py runs this module with an interpreter that has diffusers. FOLDER has a UNet2DModel. Each line of standard
input is the name of a scheduler. For each, this module draws one batch and prints the number of network evaluations.
"""

import sys

import diffusers
import torch


def main() -> None:
    folder, batch, n_steps = sys.argv[1:]
    network = diffusers.UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False).eval()
    size = network.config.sample_size
    channels = network.config.in_channels
    for line in sys.stdin:
        scheduler = getattr(diffusers, line.strip())()
        scheduler.set_timesteps(int(n_steps))
        with torch.inference_mode():
            x = torch.randn(int(batch), channels, size, size)
            for t in scheduler.timesteps:
                x = scheduler.step(network(x, t).sample, t, x).prev_sample
        print(len(scheduler.timesteps), flush=True)


if __name__ == "__main__":
    main()
