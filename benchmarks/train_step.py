"""Times the forward pass and the whole training step (loss, gradients, Adam, EMA) against the paper's PyTorch code.

python -m benchmarks.train_step [--cases=digits,28x28,cifar10] [--rounds=5] [--torch_python=PATH]

The two sides run alternately, so that other jobs on the machine slow both equally, and their medians are compared.
PyTorch runs in a separate process with the interpreter --torch_python. If that interpreter lacks torch, only our times
are printed.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Mapping
from statistics import median
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import datasets
import losses
from benchmarks.timing import milliseconds
from benchmarks.torch_process import PASSIVE_THREADS, TorchProcess, can_import
from configs.default import get_default_config
from core.huge_pages import restart_with_huge_pages
from models import apply_model

DROPOUT = 0.1
WORK = ("forward", "train")


class Case(NamedTuple):
    """A batch size, and the fields of config.data and config.model that define a network."""

    batch: int
    image_size: int
    num_channels: int
    nf: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]


CASES = {
    "digits": Case(128, 8, 1, nf=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,)),
    "28x28": Case(128, 28, 1, nf=32, ch_mult=(1, 2, 2), num_res_blocks=1, attn_resolutions=(7,)),
    "cifar10": Case(16, 32, 3, nf=128, ch_mult=(1, 2, 2, 2), num_res_blocks=2, attn_resolutions=(16,)),
}


class Side(Protocol):
    """One side of the comparison."""

    def milliseconds(self, work: str) -> list[float]:
        """Returns the milliseconds of each of a few calls. work: one of WORK."""
        ...


class Ours:
    """The forward pass and the train step of this project, to be compared with torch_unet.Workload."""

    def __init__(self, case: Case):
        config = _config(case)
        graphdef, state = losses.create_state(config)
        self._state = losses.place(config, state)
        self._step = losses.make_train_step(config, graphdef)
        self._predict = jax.jit(lambda params, x, t: apply_model(graphdef, params, x=x, t=t))
        shape = (case.batch, *datasets.image_shape(config))
        self._images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    def milliseconds(self, work: str) -> list[float]:
        return milliseconds(getattr(self, work))

    def forward(self) -> None:
        x = self._images.astype(np.float32) / 127.5 - 1
        jax.block_until_ready(self._predict(self._state.params, x, jnp.full(len(x), 500.0)))

    def train(self) -> None:
        self._state, _ = self._step(self._state, self._images)
        jax.block_until_ready(self._state)


def _config(case: Case) -> ConfigDict:
    config = get_default_config()
    config.data.update(image_size=case.image_size, num_channels=case.num_channels)
    config.model.update(
        nf=case.nf,
        ch_mult=case.ch_mult,
        num_res_blocks=case.num_res_blocks,
        attn_resolutions=case.attn_resolutions,
        dropout=DROPOUT,
    )
    return config


class PyTorch(TorchProcess):
    """The same work in PyTorch. The process keeps running between rounds."""

    def __init__(self, python: str, case: Case):
        arguments = json.dumps(case._asdict() | {"dropout": DROPOUT})
        super().__init__(python, "torch_unet", arguments, environment=PASSIVE_THREADS)

    def milliseconds(self, work: str) -> list[float]:
        return json.loads(self.answer(work))


def measure(sides: Mapping[str, Side], rounds: int) -> dict[tuple[str, str], float]:
    """Returns the median milliseconds by (side, work). The sides run alternately. The first round is not counted."""
    times = {(side, work): [] for side in sides for work in WORK}
    for round_index in range(rounds + 1):
        for side, work in times:
            measured = sides[side].milliseconds(work)
            if round_index > 0:
                times[side, work] += measured
    return {key: median(values) for key, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.train_step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch_python", default=sys.executable)
    flags = parser.parse_args()
    has_torch = can_import(flags.torch_python, "torch")
    if not has_torch:
        print(f"{flags.torch_python} has no torch: only our own times")
    print(f"{'case':10}{'work':10}{'ours, ms':>12}{'PyTorch, ms':>14}{'ratio':>8}")
    for name in flags.cases.split(","):
        with contextlib.ExitStack() as processes:
            sides: dict[str, Side] = {"ours": Ours(CASES[name])}
            if has_torch:
                sides["torch"] = processes.enter_context(PyTorch(flags.torch_python, CASES[name]))
            times = measure(sides, flags.rounds)
        for work in WORK:
            ours = times["ours", work]
            torch = times.get(("torch", work))
            against = f"{torch:14.1f}{ours / torch:8.2f}" if torch else f"{'-':>14}{'-':>8}"
            print(f"{name:10}{work:10}{ours:12.1f}{against}", flush=True)


if __name__ == "__main__":
    restart_with_huge_pages()  # as main.py does; PyTorch's process inherits the setting
    main()
