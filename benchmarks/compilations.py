"""Counts the programs that JAX compiles in two runs of the same mode. The second can load programs of the first run.

python -m benchmarks.compilations [--modes=train,eval]

--modes lists some of MODES; by default all of them are measured. Every run does as little work as possible on digits,
so most of its time is imports, tracing and compiling. CPU seconds are those of the whole process, which depend little
on other jobs. `programs` counts the programs that are compiled, but not the programs that are loaded from disk.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from core.files import REPOSITORY

IMPORT = "--mode=import --source=assets/weights/digits_8.npz"
LEAST = "--config.eval.num_samples=100 --config.eval.batch_size=100"
MODES = {
    "fid_stats": "--mode=fid_stats",
    "train": "--mode=train --config.training.n_iters=2",
    "eval": f"--mode=eval --gls --t_start=400 {LEAST}",
    "sweep": f"--mode=sweep --config.sweep.t_starts=(300,500) {LEAST}",
    "sample": "--mode=sample --num=16",
    "analyze": f"--mode=analyze {LEAST}",
}

COUNTED = """
import json, resource, sys
import jax, main

events, durations = [], []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
jax.monitoring.register_event_duration_secs_listener(lambda event, seconds, **_: durations.append((event, seconds)))
main.main(sys.argv)
seconds = [seconds for event, seconds in durations if event.endswith("/backend_compile_duration")]
loaded = sum(event.endswith("/cache_hits") for event in events)
usage = resource.getrusage(resource.RUSAGE_SELF)
counts = {"programs": len(seconds) - loaded, "compiling": sum(seconds), "cpu": usage.ru_utime + usage.ru_stime}
print(json.dumps(counts))
"""


class Counts(NamedTuple):
    """The cost of one run."""

    programs: int  # number of programs that JAX compiled
    compiling: float  # seconds in which JAX compiled or loaded programs
    cpu: float  # CPU seconds of the process


def run(mode: str, folder: Path, cache: Path) -> Counts:
    """Runs a mode in a separate process. Raises CalledProcessError if the process fails."""
    command = [sys.executable, "-c", COUNTED, "--config=configs/ddpm/digits.py", *mode.split()]
    command.append(f"--config.assets_dir={folder}/assets")
    if "fid_stats" not in mode:
        command.append(f"--workdir={folder}/{'new' if 'train' in mode else 'run'}")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment = kept | {"XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return Counts(**json.loads(done.stdout.splitlines()[-1]))


def measure(mode: str, folder: Path) -> tuple[Counts, Counts]:
    """Measures the first and the second run of a mode. Each has a separate folder, so that it repeats all work."""
    found = []
    for name in ("first", "second"):
        own = folder / mode / name
        shutil.copytree(REPOSITORY / "assets/classifier", own / "assets/classifier")
        if mode not in ("fid_stats", "train"):
            for before in (IMPORT, MODES["fid_stats"]):
                run(before, own, cache=folder / "preparations")
        found.append(run(MODES[mode], own, cache=folder / mode))
    return found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.compilations", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--modes", default=",".join(MODES))
    modes = parser.parse_args().modes.split(",")
    print(f"{'':10}{'first run':^33}{'second run':^33}")
    print(f"{'mode':10}" + 2 * f"{'programs':>10}{'compiling, s':>14}{'CPU, s':>9}" + f"{'ratio':>7}")
    with tempfile.TemporaryDirectory() as folder:
        for mode in modes:
            first, second = measure(mode, Path(folder))
            columns = "".join(f"{run.programs:10}{run.compiling:14.1f}{run.cpu:9.1f}" for run in (first, second))
            print(f"{mode:10}{columns}{second.cpu / first.cpu:7.2f}", flush=True)


if __name__ == "__main__":
    main()
