"""Measures the regret of automatic starts: how much worse they score than the best start of a full sweep.

python -m experiments.regret CONFIG [--n_steps 3 5 10] [--samplers ddpm ..] [--starts=150:850:25]
    [--evaluation=50000] [--num=600]

For every sampler and n, --num images are scored from each start of a sweep. The program also chooses an automatic start
for an evaluation of --evaluation images, and --num images from that start are scored. All these images are drawn from
the same noise, which the search for the automatic start does not use. Finished parts are stored in
results/CONFIG/regret and not repeated. The tables are written to docs/CONFIG/regret_of50000.csv and .txt, where 50000
is the value of --evaluation.
"""

import argparse
import importlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

import evaluation
import sampling
from core import files, tables
from evaluation import EvalContext, EvalRun
from experiments.runs import command_line
from metrics import frechet
from metrics.tally import Tally, observe
from sampling.time_grid import AUTO_START, starts_of

CONFIGS = ("digits", "fashion_mnist", "fashion_mnist_eps")
SAMPLERS = [name for name, solver in sampling.SAMPLERS.items() if solver.nfe(1)]
COLUMNS = ("sampler", "n_steps", "nfe", "best", "best_score", "auto", "auto_score", "regret", "share_of_evaluation")


def score(config: ConfigDict, context: EvalContext, t_start: int) -> float:
    """Scores config.eval.num_samples images from a late start."""
    config = config.copy_and_resolve_references()
    config.sampling.t_start = t_start
    run = EvalRun(config, context)
    timesteps, _ = run.plan()
    tally = Tally(context.features.dim)
    for pixels, count in run.batches(timesteps):
        observe(tally, context.features, labeller=None, pixels=pixels, count=count)
    return frechet.distance(tally.groups, context.reference).value


def sweep(config: ConfigDict, context: EvalContext, starts: Sequence[int]) -> dict[str, float]:
    """Returns the score from each of the starts. The keys are strings, as in JSON."""
    return {str(t_start): score(config, context, t_start) for t_start in starts}


def measure(config: ConfigDict, context: EvalContext, scores: Mapping[str, float], evaluated: int) -> dict[str, Any]:
    """Compares the automatic start for an evaluation of `evaluated` images with the best start of a sweep.

    Returns a row of COLUMNS.

    scores: the result of `sweep` for the same config.
    """
    auto_config = config.copy_and_resolve_references()
    auto_config.eval.num_samples = evaluated
    auto_config.sampling.t_start = AUTO_START
    timesteps, chosen = EvalRun(auto_config, context).plan()
    auto = int(timesteps[0])
    auto_score = scores[str(auto)] if str(auto) in scores else score(config, context, auto)
    best = min(scores, key=scores.get)
    sampler = config.sampling.sampler
    n_steps = config.sampling.n_steps
    return {
        "sampler": sampler,
        "n_steps": n_steps,
        "nfe": sampling.nfe(sampler, n_steps),
        "best": int(best),
        "best_score": scores[best],
        "auto": auto,
        "auto_score": auto_score,
        "regret": auto_score / scores[best] - 1,
        "share_of_evaluation": chosen.share,
    }


def report(cells: Sequence[Mapping[str, Any]], dest: Path) -> None:
    """Writes the cells to dest.csv. Writes and prints dest.txt, which also has the median and the largest regret."""
    files.write_text(
        dest.with_suffix(".csv"), tables.to_csv(COLUMNS, [[cell[name] for name in COLUMNS] for cell in cells])
    )
    rows = []
    for cell in cells:
        best, auto = (f"{cell[name]:.2f}" for name in ("best_score", "auto_score"))
        line = [cell["sampler"], str(cell["n_steps"]), str(cell["best"]), best, str(cell["auto"]), auto]
        rows.append([*line, f"{cell['regret']:.1%}"])
    regrets = [cell["regret"] for cell in cells]
    table = tables.aligned(("sampler", "n", "best", "score", "auto", "score", "regret"), rows)
    text = f"{table}\n\nregret: median {median(regrets):.1%}, worst {max(regrets):.1%}\n"
    files.write_text(dest.with_suffix(".txt"), text)
    print(text)


def stored(path: Path, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the JSON object in the file. If the file does not exist, `make` makes the object and it is stored."""
    if not path.exists():
        files.write_json(path, make())
    return files.read_json(path)


def run(
    name: str, n_steps: Sequence[int], samplers: Sequence[str], *, starts: Sequence[int], evaluated: int, num: int
) -> None:
    """Measures all cells (sampler, n) of a config, and reports the results after each cell."""
    config = importlib.import_module(f"configs.ddpm.{name}").get_config()
    config.eval.num_samples = num
    config.sampling.update(gls=True, t_start=AUTO_START)
    workdir = Path("results") / name
    context = evaluation.load_context(config, workdir, [config])
    cells: dict[str, ConfigDict] = {}
    for n, sampler in itertools.product(n_steps, samplers):
        cell = config.copy_and_resolve_references()
        cell.sampling.update(sampler=sampler, n_steps=n)
        cells[f"{sampler}_n{n}_step{context.checkpoint_step}_num{num}_from{len(starts)}"] = cell

    folder = workdir / "regret"
    sweeps = {}
    for key, cell in tqdm(cells.items(), "sweeps"):
        sweeps[key] = stored(folder / f"{key}.json", lambda cell=cell: sweep(cell, context, starts))
    measured = []
    for key, cell in tqdm(cells.items(), "automatic starts"):
        path = folder / f"{key}_of{evaluated}.json"
        measured.append(
            stored(path, lambda key=key, cell=cell: measure(cell, context, sweeps[key], evaluated=evaluated))
        )
        report(measured, Path("docs") / name / f"regret_of{evaluated}")


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m experiments.regret", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", choices=CONFIGS)
    parser.add_argument("--n_steps", type=int, nargs="+", default=[3, 5, 10])
    parser.add_argument("--samplers", choices=SAMPLERS, nargs="+", default=SAMPLERS)
    parser.add_argument("--starts", type=starts_of, default="150:850:25")
    parser.add_argument("--evaluation", type=int, default=50_000)
    parser.add_argument("--num", type=int, default=600)
    with command_line(parser) as args:
        run(
            args.config,
            args.n_steps,
            args.samplers,
            starts=args.starts,
            evaluated=args.evaluation,
            num=args.num,
        )


if __name__ == "__main__":
    main()
