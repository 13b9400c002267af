import numpy as np
import pytest

import evaluation
import scoring
from diffusion import NoiseSchedule
from errors import UserError
from sampling.late_start import DataGaussian

BENCH = scoring.Bench(7, None, NoiseSchedule.linear(), None, "sha", None, None, None)


def run(sampler, start, score, nfe=3):
    return {"sampler": sampler, "n_steps": 3, "nfe": nfe, "gls": start != 999, "t_start": start, "score": score}


RESULTS = [run("ddim", 999, 100.0), run("ddim", 300, 20.0), run("ddim", 400, 10.0), run("ode", 999, 4.0, nfe=None)]
RESULTS += [run("ode", 300, 8.0, nfe=None)]


def test_each_run_is_compared_with_its_own_best_late_start():
    """The best of another sampler, the first or the worst start, or a gain upside down."""
    assert [(full["score"], late["score"]) for full, late in scoring.compare(RESULTS)] == [(100, 10), (4, 8)]
    lines = scoring.comparison_table(scoring.compare(RESULTS)).splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["ddim", "3", "3", "999", "100.00"],
        ["ddim", "3", "3", "400", "10.00", "10.0x"],
        ["ode", "3", "adaptive", "999", "4.00"],
        ["ode", "3", "adaptive", "300", "8.00", "0.5x"],
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sampling.sampler", "pndm"),
        ("sampling.n_steps", 4),
        ("sampling.spacing", "quadratic"),
        ("sampling.clip_x0", True),
        ("sampling.gls", True),
        ("eval.num_samples", 99),
        ("seed", 1),
    ],
)
def test_every_question_has_a_folder_of_its_own(config, field, value):
    """A run of another seed, grid or count that replaces a result, or passes for it."""
    before = scoring.describe(config, BENCH)
    config.update_from_flattened_dict({field: value})
    after = scoring.describe(config, BENCH)
    assert before != after
    assert scoring.folder_name(before) != scoring.folder_name(after)


def test_sweep_visits_every_cell_once_from_pure_noise_first(config):
    runs = scoring.sweep_configs(config, [2, 5], [300])
    cells = [(r.sampling.sampler, r.sampling.n_steps, r.sampling.t_start if r.sampling.gls else None) for r in runs]
    assert cells[:4] == [("ddim", 2, None), ("ddim", 2, 300), ("ddim", 5, None), ("ddim", 5, 300)]
    assert len(set(cells)) == len(cells) == 8


def test_gaussian_of_other_images_is_refused(config, rng):
    """A late start drawn at the size of another data set."""
    DataGaussian.fit([rng.standard_normal((9, 4, 4, 1))]).save(evaluation.stats_path(config, evaluation.GAUSSIAN))
    with pytest.raises(UserError, match="shape"):
        scoring.load_gaussian(config)


def test_damaged_gaussian_is_one_line(config, rng):
    """NaN, or arrays that do not fit together, found only when samples come out wrong."""
    path = evaluation.stats_path(config, evaluation.GAUSSIAN)
    DataGaussian.fit([rng.standard_normal((99, 8, 8, 1))]).save(path)
    assert scoring.load_gaussian(config)[0].image_shape == (8, 8, 1)
    whole = dict(np.load(path))
    for name, broken in [("mean", whole["mean"] * np.nan), ("eigenvalues", np.ones(3)), ("image_shape", np.array("x"))]:
        np.savez(path, **whole | {name: broken})
        with pytest.raises(UserError, match="gaussian"):
            scoring.load_gaussian(config)
