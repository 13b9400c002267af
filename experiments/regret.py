"""What the start chosen by a trial loses against the best of a full sweep.

python experiments/regret.py CONFIG [--n_steps 3 5 10] [--evaluation=50000] [--num=600]

For every sampler and n, --num images are scored from each start of the sweep and from the one that `--t_start=auto`
chooses for an evaluation of --evaluation images, all of the same noise, which the trial does not see. What is finished
lies in results/CONFIG/regret and is not done again; docs/CONFIG/regret_of50000.csv and .txt, or of what --evaluation
says, are made of it.
"""

import argparse
import importlib
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

import evaluation
import sampling
from core import files, tables
from core.errors import UserError
from core.huge_pages import restart_with_huge_pages
from metrics import frechet
from metrics.tally import Tally
from sampling import auto_start
from sampling.time_grid import AUTO_START

STARTS = range(150, 851, 25)
SAMPLERS = [name for name, solver in sampling.SAMPLERS.items() if solver.nfe(1)]
COLUMNS = ("sampler", "n_steps", "nfe", "best", "best_score", "auto", "auto_score", "regret", "share_of_evaluation")


def score(config: ConfigDict, bench: evaluation.Bench, t_start: int) -> float:
    config = config.copy_and_resolve_references()
    config.sampling.t_start = t_start
    tally = Tally(bench.features.dim)
    for x0, count in evaluation.draw(config, bench, evaluation.plan(config, bench)[0]):
        tally.observe(tally, bench.features, None, x0, count)
    return frechet.distance(tally.groups, bench.reference).value


def sweep(config: ConfigDict, bench: evaluation.Bench) -> dict[str, float]:
    """The score of config.eval.num_samples images from every start."""
    return {str(t_start): score(config, bench, t_start) for t_start in STARTS}


def measure(config: ConfigDict, bench: evaluation.Bench, scores: dict[str, float], evaluated: int) -> dict:
    """What the start chosen for an evaluation of so many images loses against the best of a sweep."""
    asked = config.copy_and_resolve_references()
    asked.eval.num_samples, asked.sampling.t_start = evaluated, AUTO_START
    choice = auto_start.choose(asked, bench.eps_fn, bench.schedule, bench.gaussian)
    auto, best = int(choice.timesteps[0]), min(scores, key=scores.get)
    auto_score = scores[str(auto)] if str(auto) in scores else score(config, bench, auto)
    sampler, n_steps = config.sampling.sampler, config.sampling.n_steps
    facts = (sampler, n_steps, sampling.nfe(sampler, n_steps), int(best), scores[best], auto, auto_score)
    return dict(zip(COLUMNS, (*facts, auto_score / scores[best] - 1, choice.share), strict=True))


def report(cells: list[dict], dest: Path) -> None:
    """Every cell, the median regret and the worst, for machines (dest.csv) and for people (dest.txt)."""
    values, rows = [[cell[name] for name in COLUMNS] for cell in cells], []
    files.write_text(dest.with_suffix(".csv"), tables.to_csv(COLUMNS, values))
    for cell in cells:
        best, auto = (f"{cell[name]:.2f}" for name in ("best_score", "auto_score"))
        line = [cell["sampler"], str(cell["n_steps"]), str(cell["best"]), best, str(cell["auto"]), auto]
        rows.append([*line, f"{cell['regret']:.1%}"])
    regrets = [cell["regret"] for cell in cells]
    table = tables.aligned(("sampler", "n", "best", "score", "auto", "score", "regret"), rows)
    summary = f"regret: median {median(regrets):.1%}, worst {max(regrets):.1%}"
    files.write_text(dest.with_suffix(".txt"), f"{table}\n\n{summary}\n")
    print(f"{table}\n\n{summary}\n")


def main(name: str, n_steps: list[int], evaluated: int, num: int) -> None:
    config = importlib.import_module(f"configs.ddpm.{name}").get_config()
    config.eval.num_samples = num
    config.sampling.gls = True
    workdir = Path("results") / name
    bench = evaluation.load_bench(config, workdir, [config])
    cells: dict[str, ConfigDict] = {}
    for n, sampler in itertools.product(n_steps, SAMPLERS):
        cell = config.copy_and_resolve_references()
        cell.sampling.update(sampler=sampler, n_steps=n)
        cells[f"{sampler}_n{n}_step{bench.checkpoint_step}_num{num}"] = cell

    def kept(path: Path, make: Callable[..., dict], *args) -> dict:
        if not path.exists():
            files.write_json(path, make(*args))
        return files.read_json(path)

    folder, found = workdir / "regret", []
    sweeps = {key: kept(folder / f"{key}.json", sweep, cell, bench) for key, cell in tqdm(cells.items(), "sweeps")}
    for key, cell in tqdm(cells.items(), "trials"):
        found.append(kept(folder / f"{key}_of{evaluated}.json", measure, cell, bench, sweeps[key], evaluated))
        report(found, Path("docs") / name / f"regret_of{evaluated}")


if __name__ == "__main__":
    restart_with_huge_pages()  # as main.py does
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", choices=("digits", "fashion_mnist", "fashion_mnist_muon", "fashion_mnist_eps"))
    parser.add_argument("--n_steps", type=int, nargs="+", default=[3, 5, 10])
    parser.add_argument("--evaluation", type=int, default=50_000)
    parser.add_argument("--num", type=int, default=600)
    args = parser.parse_args()
    logging.set_verbosity(logging.FATAL)  # as main.py does
    try:
        main(args.config, args.n_steps, args.evaluation, args.num)
    except (UserError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; the same command goes on from what is saved\n")
