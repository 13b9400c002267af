"""Times every sampler against the network that it asks, and against diffusers' loop around the same network.

python benchmarks/sampling.py [--samplers=ddim,pndm] [--n_steps=5] [--batch=4] [--rounds=5] [--torch_python=PATH]

The network is that of configs/ddpm/cifar10.py with random weights. What is timed is a whole batch, from noise to x_0,
compiled beforehand. Two sides take turns, so that both see the same machine, and how they compare is the median over
turns of the ratio within a turn. diffusers runs in a process of its own, whose interpreter --torch_python names; where
it has no torch and diffusers, that comparison is left out.
"""

import argparse
import inspect
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from timing import in_turn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
from tqdm import tqdm

import sampling
from configs.ddpm.cifar10 import get_config
from core import tables
from core.diffusion import NoiseSchedule
from models import create_model, make_eps_fn
from models.foreign import export_diffusers
from sampling.time_grid import time_grid

FIXED = [name for name in sampling.SAMPLERS if sampling.nfe(name, 1) is not None]  # all whose NFE is known beforehand
SCHEDULERS = {  # the samplers that diffusers has too, with its defaults; both multistep solvers are of order 2
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "unipc_2": "UniPCMultistepScheduler",
}


class Ours:
    """A network, a batch of noise, and the two ways to spend calls of the one on the other."""

    def __init__(self, batch: int, n_steps: int):
        self.config, self.schedule, self.batch, self.n_steps = get_config(), NoiseSchedule.linear(), batch, n_steps
        graphdef, self.params = create_model(self.config, jax.random.key(0))
        self.eps_fn = make_eps_fn(graphdef, self.params)
        size, channels = self.config.data.image_size, self.config.data.num_channels
        self.x = jax.random.normal(jax.random.key(1), (batch, size, size, channels))

    def sample(self, name: str) -> None:
        timesteps, rng = time_grid(self.n_steps, self.schedule.num_timesteps - 1), jax.random.key(2)
        jax.block_until_ready(sample(name, self.eps_fn, self.schedule, self.x, timesteps, rng))

    def network(self, nfe: int) -> None:
        times = jnp.linspace(self.schedule.num_timesteps - 1, 0, nfe)
        jax.block_until_ready(plain_loop(self.eps_fn, self.x, times))


sample = jax.jit(sampling.sample, static_argnums=0)


@jax.jit
def plain_loop(eps_fn, x, times):
    """The network once for each of times, always on what it gave last, so that no part of a call can be hoisted."""
    return jax.lax.scan(lambda x, t: (eps_fn(x, jnp.full(len(x), t)), None), x, times)[0]


def diffusers_loop(folder, batch, n_steps):
    """The loop of diffusers' pipelines: runs once for every scheduler that a line of input names, and prints its NFE.

    It is another interpreter that runs this, from its source alone.
    """
    import sys

    import diffusers
    import torch

    network = diffusers.UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False).eval()
    size, channels = network.config.sample_size, network.config.in_channels
    for line in sys.stdin:
        scheduler = getattr(diffusers, line.strip())()
        scheduler.set_timesteps(n_steps)
        with torch.inference_mode():
            x = torch.randn(batch, channels, size, size)
            for t in scheduler.timesteps:
                x = scheduler.step(network(x, t).sample, t, x).prev_sample
        print(len(scheduler.timesteps), flush=True)


def against_network(ours: Ours, names: list[str], rounds: int) -> str:
    """What each sampler adds to the calls of the network that it makes."""
    rows = []
    for name in tqdm(names, "samplers and the network alone", leave=False):
        nfe = sampling.nfe(name, ours.n_steps)
        seconds, _, ratio = in_turn(partial(ours.sample, name), partial(ours.network, nfe), rounds)
        times = f"{ours.batch / seconds:.3f}", f"{seconds / nfe:.4f}", f"{100 * (ratio - 1):+.1f}"
        rows.append((name, str(ours.n_steps), str(nfe), *times))
    return tables.aligned(("sampler", "n", "NFE", "images/s", "s per NFE", "overhead, %"), rows)


def against_diffusers(ours: Ours, names: list[str], rounds: int, python: str) -> str:
    """Whole loops around the same weights, at the same n, NFE and batch."""

    def diffusers(name):
        print(SCHEDULERS[name], file=process.stdin, flush=True)
        answer, nfe = process.stdout.readline(), sampling.nfe(name, ours.n_steps)
        if answer != f"{nfe}\n":
            raise RuntimeError(f"{SCHEDULERS[name]} should have answered {nfe}, its NFE, and not {answer!r}")

    rows = []
    # PyTorch's threads, which by default spin while they wait, take 3 to 10 times as long where other jobs hold a core.
    environment = {"OMP_WAIT_POLICY": "passive"} | os.environ
    with tempfile.TemporaryDirectory() as temporary:
        folder = f"{temporary}/unet"
        export_diffusers(folder, ours.config, ours.params)
        code = f"{inspect.getsource(diffusers_loop)}\ndiffusers_loop({folder!r}, {ours.batch}, {ours.n_steps})"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen([python, "-c", code], env=environment, **pipes) as process:
            for name in tqdm(names, "samplers and diffusers", leave=False):
                *seconds, ratio = in_turn(partial(ours.sample, name), partial(diffusers, name), rounds)
                rows.append((name, SCHEDULERS[name], *(f"{ours.batch / s:.3f}" for s in seconds), f"{1 / ratio:.2f}"))
    return tables.aligned(("sampler", "diffusers", "ours, images/s", "diffusers, images/s", "ratio"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samplers", default=",".join(FIXED))
    parser.add_argument("--n_steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch_python", default=sys.executable)
    flags = parser.parse_args()
    names, ours = flags.samplers.split(","), Ours(flags.batch, flags.n_steps)
    print(f"{against_network(ours, names, flags.rounds)}\n", flush=True)
    test = [flags.torch_python, "-c", "import diffusers, torch"]
    if subprocess.run(test, capture_output=True).returncode:
        print(f"{flags.torch_python} has no torch and diffusers: no comparison with them.")
    else:
        shared = [name for name in names if name in SCHEDULERS]
        print(against_diffusers(ours, shared, flags.rounds, flags.torch_python))


if __name__ == "__main__":
    main()
