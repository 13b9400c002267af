import sweeping


def run(sampler, start, score, nfe=3):
    return {"sampler": sampler, "n_steps": 3, "nfe": nfe, "gls": start != 999, "t_start": start, "score": score}


RESULTS = [run("ddim", 999, 100.0), run("ddim", 300, 20.0), run("ddim", 400, 10.0), run("ode", 999, 4.0, nfe=None)]
RESULTS += [run("ode", 300, 8.0, nfe=None)]


def test_each_run_is_compared_with_its_own_best_late_start():
    """The best of another sampler, the first or the worst start, or a gain upside down."""
    assert [(full["score"], late["score"]) for full, late in sweeping.compare(RESULTS)] == [(100, 10), (4, 8)]
    lines = sweeping.comparison_table(sweeping.compare(RESULTS)).splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["ddim", "3", "3", "999", "100.00"],
        ["ddim", "3", "3", "400", "10.00", "10.0x"],
        ["ode", "3", "adaptive", "999", "4.00"],
        ["ode", "3", "adaptive", "300", "8.00", "0.5x"],
    ]


def test_sweep_visits_every_cell_once_from_pure_noise_first(config):
    runs = sweeping.sweep_configs(config, [2, 5], [300])
    cells = [(r.sampling.sampler, r.sampling.n_steps, r.sampling.t_start if r.sampling.gls else None) for r in runs]
    assert cells[:4] == [("ddim", 2, None), ("ddim", 2, 300), ("ddim", 5, None), ("ddim", 5, 300)]
    assert len(set(cells)) == len(cells) == 8
