"""The comparison of the runs of a sweep, and the list of its runs."""

from configs.runs import sweep_configs
from configs.validation import validate
from metrics import comparison


def run(sampler, start, score, nfe=3, baseline="", gls=None, **settings):
    return {
        **settings,
        "sampler": sampler,
        "n_steps": 3,
        "nfe": nfe,
        "gls": start != 999 if gls is None else gls,
        "t_start": start,
        "score": score,
        "baseline": baseline,
        "chooses_start": False,
    }


RESULTS = [
    run("ddim", 999, 100.0),
    run("ddim", 300, 20.0),
    run("ddim", 400, 10.0),
    run("ode", 999, 4.0, nfe=None),
    run("ode", 300, 8.0, nfe=None),
]


def test_each_run_is_compared_with_its_own_best_late_start():
    """Catches the best start of another sampler, the first or the worst start, and an inverted gain."""
    assert [(full["score"], late["score"]) for full, late in comparison.compare(RESULTS)] == [(100, 10), (4, 8)]
    lines = comparison.comparison_table(comparison.compare(RESULTS)).splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["ddim", "3", "3", "999", "100.00"],
        ["ddim", "3", "3", "400", "10.00", "10.0x"],
        ["ode", "3", "adaptive", "999", "4.00"],
        ["ode", "3", "adaptive", "300", "8.00", "0.5x"],
    ]


def test_baselines_stand_beside_the_late_start():
    """Catches a baseline that is shown as the late start or as the run from pure noise."""
    others = [
        run("ddim", 999, 50.0, nfe=2, baseline="afs"),
        run("ddim", 300, 15.0, baseline="isotropic"),
        run("ddim", 400, 14.0, baseline="isotropic"),
    ]
    [cell, _] = comparison.compare(others + RESULTS)
    assert [(r["score"], r["baseline"]) for r in cell] == [(100, ""), (50, "afs"), (14, "isotropic"), (10, "")]
    lines = comparison.comparison_table([cell]).splitlines()
    assert lines[3].split() == ["ddim", "3", "2", "999", "afs", "50.00", "2.0x"]
    assert lines[4].split() == ["ddim", "3", "3", "400", "isotropic", "14.00", "7.1x"]


def test_mixtures_and_the_better_of_both_starts_from_pure_noise():
    """Catches a mixture shown in place of the single Gaussian, and a gain over the worse start from pure noise."""
    runs = [
        run("ddim", 999, 100.0),
        run("ddim", 667, 50.0, baseline="leading", gls=False),
        run("ddim", 300, 25.0),
        run("ddim", 200, 10.0, components="labels"),
        run("ddim", 300, 12.5, components="labels"),
        run("ddim", 200, 5.0, components="20"),
    ]
    lines = comparison.comparison_table(comparison.compare(runs)).splitlines()
    assert [line.split()[3:] for line in lines[2:]] == [
        ["999", "100.00"],
        ["667", "leading", "50.00"],
        ["300", "25.00", "2.0x"],
        ["200", "labels", "10.00", "5.0x"],
        ["200", "20", "clusters", "5.00", "10.0x"],
    ]


def test_sweep_visits_every_cell_once_from_pure_noise_first(config):
    """Catches a run that is missing or repeated, and a run from pure noise for each late start."""
    runs = sweep_configs(config, [2, 5], [300])
    cells = [(r.sampling.sampler, r.sampling.n_steps, r.sampling.t_start if r.sampling.gls else None) for r in runs]
    assert cells[:4] == [("ddim", 2, None), ("ddim", 2, 300), ("ddim", 5, None), ("ddim", 5, 300)]
    assert len(set(cells)) == len(cells) == 8

    runs = sweep_configs(config, [2], [300], baselines=["isotropic", "afs"])
    cells = [(r.sampling.gls, r.sampling.baseline) for r in runs[:4]]
    assert cells == [(False, ""), (False, "afs"), (True, ""), (True, "isotropic")]
    for each in runs:
        validate(each)


def test_only_samplers_with_a_history_run_without_it(config):
    """Catches a sweep that fails at a sampler without a history, for which the baseline no_history does not exist."""
    config.sweep.samplers = ("ddim", "unipc_3")
    runs = sweep_configs(config, [5], [300], baselines=["no_history"])
    cells = [(r.sampling.sampler, r.sampling.gls, r.sampling.baseline) for r in runs]
    late = [("unipc_3", True, ""), ("unipc_3", True, "no_history")]
    assert cells == [("ddim", False, ""), ("ddim", True, ""), ("unipc_3", False, ""), *late]
    for each in runs:
        validate(each)


def test_baselines_run_where_they_change_something(config):
    """Catches a sweep that fails for a sampler without the baseline, and a baseline that repeats another run."""
    config.sweep.samplers = ("ddim", "unipc_3", "ode")
    runs = sweep_configs(config, [4, 5], [300], baselines=["no_history", "afs"])
    cells = [(r.sampling.sampler, r.sampling.n_steps, r.sampling.baseline) for r in runs if r.sampling.baseline]
    assert cells == [
        ("ddim", 4, "afs"),
        ("ddim", 5, "afs"),
        *[("unipc_3", 4, "afs"), ("unipc_3", 5, "afs")],
        ("unipc_3", 5, "no_history"),
    ]
    for each in runs:
        validate(each)
