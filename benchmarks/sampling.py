"""Compares the time of every sampler with the time of its network evaluations, and with the same sampler in diffusers.

python -m benchmarks.sampling [--samplers=ddim,pndm] [--n_steps=5] [--batch=4] [--rounds=5] [--torch_python=PATH]

The network is that of configs/ddpm/cifar10.py with random weights. A call draws a whole batch, from noise to x_0, with
compiled code. The two sides run alternately, so that other jobs on the machine slow both equally. The reported ratio is
the median, over rounds, of the time ratio in each round. diffusers runs in a separate process with the interpreter
--torch_python. If that interpreter lacks torch or diffusers, the second comparison is left out.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from tqdm import tqdm

import datasets
import sampling
from benchmarks.timing import in_turn
from benchmarks.torch_process import PASSIVE_THREADS, TorchProcess, can_import
from configs.ddpm.cifar10 import get_config
from core import tables
from core.diffusion import Denoiser
from core.shapes import Images
from models import create_model, make_denoiser
from models.foreign import export_diffusers
from sampling.time_grid import time_grid

FIXED = [name for name in sampling.SAMPLERS if sampling.nfe(name, 1) is not None]  # samplers that are not adaptive
SCHEDULERS = {  # our sampler: the same sampler in diffusers; both multistep solvers have solver_order 2
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "unipc_2": "UniPCMultistepScheduler",
}


class Ours:
    """A network and a batch of noise. `sample` runs a sampler on them. `network` only evaluates the network."""

    def __init__(self, batch: int, n_steps: int):
        self.config = get_config()
        self.batch = batch
        self.n_steps = n_steps
        graphdef, self.params = create_model(self.config, jax.random.key(0))
        self.denoiser = make_denoiser(self.config, graphdef, self.params)
        self.x = jax.random.normal(jax.random.key(1), (batch, *datasets.image_shape(self.config)))

    def sample(self, name: str) -> None:
        timesteps = time_grid(self.n_steps, self.denoiser.schedule.num_timesteps - 1)
        jax.block_until_ready(sample(name, self.denoiser, self.x, timesteps=timesteps, rng=jax.random.key(2)))

    def network(self, nfe: int) -> None:
        times = jnp.linspace(self.denoiser.schedule.num_timesteps - 1, 0, nfe)
        jax.block_until_ready(plain_loop(self.denoiser, self.x, times))


sample = jax.jit(sampling.sample, static_argnames="name")


@jax.jit
def plain_loop(denoiser: Denoiser, x: Images, times: Float[Array, "nfe"]) -> Images:
    """Evaluates the network at each time on its last output, so that XLA cannot move an evaluation out of the loop."""
    return jax.lax.scan(lambda x, t: (denoiser.eps(x, t), None), x, times)[0]


def against_network(ours: Ours, names: Sequence[str], rounds: int) -> str:
    """Makes the table of the time that each sampler adds to its network evaluations."""
    rows = []
    for name in tqdm(names, "samplers and network", leave=False):
        nfe = sampling.nfe(name, ours.n_steps)
        compared = in_turn(partial(ours.sample, name), partial(ours.network, nfe), rounds)
        rate = f"{ours.batch / compared.ours:.3f}"
        per_evaluation = f"{compared.ours / nfe:.4f}"
        overhead = f"{100 * (compared.ratio - 1):+.1f}"
        rows.append((name, str(ours.n_steps), str(nfe), rate, per_evaluation, overhead))
    return tables.aligned(("sampler", "n", "NFE", "images/s", "s per NFE", "overhead, %"), rows)


def against_diffusers(ours: Ours, names: Sequence[str], rounds: int, python: str) -> str:
    """Makes the table of whole sampling loops in both libraries, with the same weights, n, NFE and batch size."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = f"{temporary}/unet"
        export_diffusers(folder, ours.config, ours.params)
        arguments = (folder, str(ours.batch), str(ours.n_steps))
        with TorchProcess(python, "torch_samplers", *arguments, environment=PASSIVE_THREADS) as process:

            def run_diffusers(name: str) -> None:
                nfe = process.answer(SCHEDULERS[name])
                expected = str(sampling.nfe(name, ours.n_steps))
                if nfe != expected:
                    raise RuntimeError(f"{SCHEDULERS[name]} evaluated the network {nfe} times, expected {expected}")

            for name in tqdm(names, "samplers and diffusers", leave=False):
                compared = in_turn(partial(ours.sample, name), partial(run_diffusers, name), rounds)
                rates = [f"{ours.batch / seconds:.3f}" for seconds in (compared.ours, compared.other)]
                rows.append((name, SCHEDULERS[name], *rates, f"{1 / compared.ratio:.2f}"))
    return tables.aligned(("sampler", "diffusers", "ours, images/s", "diffusers, images/s", "ratio"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.sampling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samplers", default=",".join(FIXED))
    parser.add_argument("--n_steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch_python", default=sys.executable)
    flags = parser.parse_args()
    names = flags.samplers.split(",")
    ours = Ours(flags.batch, flags.n_steps)
    print(f"{against_network(ours, names, flags.rounds)}\n", flush=True)
    if not can_import(flags.torch_python, "diffusers", "torch"):
        print(f"{flags.torch_python} has no torch and diffusers: no comparison with them")
        return
    shared = [name for name in names if name in SCHEDULERS]
    print(against_diffusers(ours, shared, rounds=flags.rounds, python=flags.torch_python))


if __name__ == "__main__":
    main()
