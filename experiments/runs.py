"""Scored runs of one network for the experiments in this folder, and the command line of the experiments."""

import argparse
import contextlib
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int32
from ml_collections import ConfigDict

import evaluation
from core import files, tables
from core.compilation_cache import keep_programs
from core.errors import UserError
from core.huge_pages import restart_with_huge_pages
from core.shapes import HostPixels
from evaluation import EvalRun
from metrics.results import Result
from metrics.tally import Tally, open_images, tally_images
from sampling.late_start import ONE
from sampling.time_grid import AUTO_START

SEARCH_SEED = 0  # the seed of the noise with which the best start is searched
COARSE = range(300, 901, 100)  # the starts that are tried first
FINE = (-50, 50)  # the starts that are tried next, relative to the best of the first

MEASURES = ("score", "score_error", "score_at_infinity", "kid", "precision", "recall", "density", "coverage")
MEASURES += ("label_entropy", "label_distance")
COLUMNS = ("sampler", "spacing", "n_steps", "nfe", "start", "t_start", "seed", "num_samples", *MEASURES)


class Experiment:
    """One network and its scored runs.

    Attributes:
      config: the config that all runs share.
      context: the network, the Gaussian of its data, and the features of its scores (`evaluation.load_context`).
      folder: the folder of the runs.
    """

    def __init__(self, config: ConfigDict, workdir: Path, components: Sequence[str] = (ONE,)):
        self.config = config
        late_runs = [
            self.variant("ddim", 3, seed=0, num=2, t_start=AUTO_START, components=entry) for entry in components
        ]  # load_context loads the distributions of these late starts, and what automatic starts need
        self.context = evaluation.load_context(config, workdir, late_runs)
        self.folder = workdir / "experiments"

    def variant(
        self, sampler: str, n_steps: int, *, seed: int, num: int, t_start: int | None = None, **settings: Any
    ) -> ConfigDict:
        """Returns the config of a run of `num` samples, from pure noise if t_start is None.

        settings: fields of config.sampling.
        """
        config = self.config.copy_and_resolve_references()
        config.seed = seed
        config.eval.num_samples = num
        config.sampling.update(sampler=sampler, n_steps=n_steps, gls=t_start is not None, **settings)
        if t_start is not None:
            config.sampling.t_start = t_start
        return config

    def score(self, sampler: str, n_steps: int, **settings: Any) -> Result:
        """Returns the result of a run with the settings of `variant`, which is drawn unless it is stored."""
        return EvalRun(self.variant(sampler, n_steps, **settings), self.context).result(self.folder)

    def draw(self, sampler: str, n_steps: int, **settings: Any) -> tuple[Int32[np.ndarray, "steps"], HostPixels]:
        """Returns the timesteps and all images of a run with the settings of `variant`. Nothing is scored or stored."""
        run = EvalRun(self.variant(sampler, n_steps, **settings), self.context)
        timesteps, _ = run.plan()
        return timesteps, run.images(timesteps)

    def best_start(
        self, sampler: str, n_steps: int, *, num: int, coarse: Iterable[int] | None = None, **settings: Any
    ) -> int:
        """Returns the start with the lowest score of `num` samples.

        Tries all starts of `coarse` (by default COARSE), and then the FINE neighbours of the best of them.
        """
        scores: dict[int, float] = {}

        def best_of(starts: Iterable[int]) -> int:
            for t_start in starts:
                run = self.score(sampler, n_steps, seed=SEARCH_SEED, num=num, t_start=t_start, **settings)
                scores[t_start] = run["score"]
            return min(scores, key=scores.get)

        near = best_of(COARSE if coarse is None else coarse)
        return best_of(near + step for step in FINE)

    def score_and_tally(self, sampler: str, n_steps: int, **settings: Any) -> tuple[Result, Tally]:
        """Returns the result of a run that keeps all its images, and the accumulated statistics of their features."""
        config = self.variant(sampler, n_steps, **settings)
        config.eval.enable_sampling = True
        run = EvalRun(config, self.context)
        result = run.result(self.folder)
        path = self.folder / run.name / "samples.npz"
        tally, _ = tally_images(config, self.context.features, self.context.labeller, open_images(config, path))
        return result, tally


def row(start: str, result: Result) -> list[Any]:
    """Returns a row of COLUMNS. `start` is the kind of start."""
    facts = result | {"start": start}
    return [facts.get(name, "") for name in COLUMNS]


def write_rows(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    """Writes rows of COLUMNS as CSV."""
    files.write_text(path, tables.to_csv(COLUMNS, rows))
    print(f"{len(rows)} runs: {path}")


def write_and_print(path: Path, text: str) -> None:
    """Writes the text to a file and prints it."""
    files.write_text(path, text + "\n")
    print(f"{text}\n")


def spread(runs: Sequence[Result], name: str) -> str:
    """Formats mean and standard deviation of a measure over the seeds."""
    values = [run[name] for run in runs]
    return f"{mean(values):.4g} ± {stdev(values):.1g}"


Part = Callable[[ConfigDict, Path, Path], None]
"""A part of an experiment. It is called with a config, the workdir of its network, and the folder of the results."""


def with_runs(part: Callable[[Experiment, Path], None], components: Sequence[str] = (ONE,)) -> Part:
    """Turns a function of (Experiment, folder) into a Part. components: values of sampling.components that it uses."""
    return lambda config, workdir, dest: part(Experiment(config, workdir, components), dest)


def main(
    name: str, description: str, parts: Mapping[str, Part], networks: Sequence[str], *, any_network: bool = False
) -> None:
    """Runs an experiment from the command line.

    The command is `python -m name [PART] [--config=NETWORK] [--workdir=PATH] [--dest=PATH]`. PART is required if there
    are several parts. NETWORK is one of `networks`, by default the first. With any_network it may be any file of
    configs/ddpm.
    """
    parser = argparse.ArgumentParser(
        f"python -m {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if len(parts) > 1:
        parser.add_argument("part", choices=parts)
    parser.add_argument("--config", choices=None if any_network else networks, default=networks[0])
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--dest", type=Path)
    with command_line(parser) as args:
        part = parts[args.part] if len(parts) > 1 else next(iter(parts.values()))
        config = importlib.import_module(f"configs.ddpm.{args.config}").get_config()
        part(config, args.workdir or Path("results") / args.config, args.dest or Path("docs") / args.config)


@contextlib.contextmanager
def command_line(parser: argparse.ArgumentParser) -> Iterator[argparse.Namespace]:
    """Prepares the process as main.py does and yields the arguments. A UserError ends the process with one line."""
    restart_with_huge_pages()
    keep_programs()
    args = parser.parse_args()
    logging.set_verbosity(logging.FATAL)
    try:
        yield args
    except (UserError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; the same command continues from what is saved\n")
