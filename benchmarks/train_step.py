"""Times the forward pass and the whole training step (loss, gradients, Adam, EMA) against the paper's PyTorch code.

python benchmarks/train_step.py [--cases=digits,28x28,cifar10] [--rounds=5] [--torch_python=PATH]

Both sides run in turn, so that both see the same machine, and medians are compared. PyTorch runs in a process of its
own, whose interpreter --torch_python names; where it has no torch, only our times are printed.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from timing import milliseconds

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import datasets
import losses
from configs.default import get_default_config
from core.diffusion import NoiseSchedule
from core.huge_pages import restart_with_huge_pages
from models import apply_model

DROPOUT = 0.1
CASES = {  # batch, then the network: image size and channels, nf, ch_mult, blocks, sizes with attention
    "digits": (128, 8, 1, 32, (1, 2), 1, (4,)),
    "28x28": (128, 28, 1, 32, (1, 2, 2), 1, (7,)),
    "cifar10": (16, 32, 3, 128, (1, 2, 2, 2), 2, (16,)),
}
WORK = ("forward", "train")


class Ours:
    """The two things timed, as torch_unet.Bench has them."""

    def __init__(self, batch, *network):
        config = self._config(*network)
        graphdef, state = losses.create_state(config)
        self.state = losses.place(config, state)
        self.step = losses.make_train_step(config, graphdef, NoiseSchedule.linear())
        self.predict = jax.jit(lambda params, x, t: apply_model(graphdef, params, x, t))
        shape = (batch, *datasets.image_shape(config))
        self.images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    @staticmethod
    def _config(size: int, channels: int, nf: int, ch_mult, blocks: int, attention) -> ConfigDict:
        config = get_default_config()
        config.data.update(image_size=size, num_channels=channels)
        config.model.update(nf=nf, ch_mult=ch_mult, num_res_blocks=blocks, attn_resolutions=attention, dropout=DROPOUT)
        return config

    def milliseconds(self, work: str) -> list[float]:
        return milliseconds(getattr(self, work))

    def forward(self):
        x = self.images.astype(np.float32) / 127.5 - 1
        jax.block_until_ready(self.predict(self.state.params, x, jnp.full(len(x), 500.0)))

    def train(self):
        self.state, _ = self.step(self.state, self.images)
        jax.block_until_ready(self.state)


class PyTorch:
    """The same in a process of its own, kept alive between rounds."""

    def __init__(self, python: str, batch: int, *network):
        command = [python, Path(__file__).with_name("torch_unet.py"), str(batch), json.dumps([*network, DROPOUT])]
        # else its idle threads spin, and take the cores from us
        environment = {"OMP_WAIT_POLICY": "passive"} | os.environ
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=environment, text=True, **pipes)

    def milliseconds(self, work: str) -> list[float]:
        print(work, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(sides: dict, rounds: int) -> dict[tuple[str, str], float]:
    """Median milliseconds of every side at every work, in turn; the first round, which compiles, is left out."""
    times = {(side, work): [] for side in sides for work in WORK}
    for round_ in range(rounds + 1):
        for side, work in times:
            found = sides[side].milliseconds(work)
            times[side, work] += found if round_ else []
    return {key: median(values) for key, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch_python", default=sys.executable)
    flags = parser.parse_args()
    has_torch = subprocess.run([flags.torch_python, "-c", "import torch"], capture_output=True).returncode == 0
    if not has_torch:
        print(f"{flags.torch_python} has no torch: our times alone.")
    print(f"{'case':10}{'work':10}{'ours, ms':>12}{'PyTorch, ms':>14}{'ratio':>8}")
    for case in flags.cases.split(","):
        sides = {"ours": Ours(*CASES[case])}
        if has_torch:
            sides["torch"] = PyTorch(flags.torch_python, *CASES[case])
        times = measure(sides, flags.rounds)
        for work in WORK:
            ours, torch = times["ours", work], times.get(("torch", work))
            against = f"{torch:14.1f}{ours / torch:8.2f}" if torch else f"{'-':>14}{'-':>8}"
            print(f"{case:10}{work:10}{ours:12.1f}{against}", flush=True)
        if has_torch:
            sides["torch"].close()


if __name__ == "__main__":
    restart_with_huge_pages()  # as main.py does; PyTorch's process inherits it
    main()
