"""The search of --mode=plan: on made-up features whose best solver is known, and as a file that eval accepts."""

import itertools
import json

import numpy as np
import pytest

import run_lib
from configs import plan_file
from configs.runs import expand_starts, sweep_configs
from core.diffusion import Denoiser, NoiseSchedule
from core.errors import UserError
from sampling import plan
from sampling.auto_start import Comparison
from sampling.late_start import ONE


class MadeUp:
    """A trial whose images lie at a given distance from the data, which depends on the sampler and the start."""

    def __init__(self, far):
        schedule = NoiseSchedule.linear()
        self.denoiser = Denoiser(lambda x, t: x, schedule)
        self.comparison = Comparison(np.asarray, (np.zeros(3), np.eye(3)))
        self.far = far
        self.network_calls = 0
        self.noise = np.random.default_rng(0).standard_normal((1000, 3))
        self.drawn = []

    def features(self, config, timesteps, images):
        self.drawn.append((config.sampling.sampler, images.start, images.stop))
        self.network_calls += (images.stop - images.start) * len(timesteps)
        if self.far[config.sampling.sampler] is None:
            return None
        return self.noise[images] + self.far[config.sampling.sampler] + abs(int(timesteps[0]) - 350) / 1000

    def to_reference(self, config, timesteps, count):
        return abs(int(timesteps[0]) - 350)

    def to_data(self, config, timesteps, count):
        return abs(int(timesteps[0]) - 350)


def runs(config, *samplers):
    found = []
    for sampler in samplers:
        copy = config.copy_and_resolve_references()
        copy.sampling.update(sampler=sampler, n_steps=5, gls=True, t_start=-1)
        found.append(copy)
    return found


def test_halving_ends_with_the_best(config):
    """Catches the worse half kept, images drawn twice, a runner-up out of order, and a wrong count of the calls."""
    far = {"ddim": 2.0, "ddpm": 1.0, "heun": 0.4, "ipndm": 0.0, "pndm": None}
    trial = MadeUp(far)
    found = plan.find(runs(config, *far), [trial] * len(far))
    order = [entry.config.sampling.sampler for entry in found.entries]
    assert order[:2] == ["ipndm", "heun"] and order[-1] == "pndm"
    assert {entry.config.sampling.t_start for entry in found.entries} == {350}
    for sampler in far:
        spans = [(start, stop) for name, start, stop in trial.drawn if name == sampler]
        assert spans[0][0] == 0 and all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    assert len(found.entries[0].features) == len(found.entries[1].features) == plan.ROUNDS_IMAGES[-1]
    assert found.network_calls == sum(stop - start for _, start, stop in trial.drawn) * 5
    assert found.margin == pytest.approx(found.entries[1].distance - found.entries[0].distance)
    assert found.margin_error > 0
    assert found.entries[-1].facts()["distance"] is None  # JSON has no infinity


def test_steps_are_the_most_that_the_budget_allows():
    """Catches a solver over the budget, one that is left out though it fits, and one step too few."""
    assert plan.steps_within(0) == {}
    steps = plan.steps_within(3)
    assert steps["ddim"] == 3 and steps["heun"] == 2
    assert "pndm" not in steps and "ode" not in steps
    assert plan.steps_within(4)["pndm"] == 1


@pytest.fixture
def planned(config, tmp_path, train_once, shipped_classifier, monkeypatch):
    """(config, workdir, path of plan.json) of a plan over one solver, with one Gaussian and with classes."""
    config.training.update(n_iters=1, snapshot_sampling=False)
    train_once(config, tmp_path / "run")
    config.sampling.components = "labels"
    run_lib.fid_stats(config)
    config.sampling.components = ONE
    config.eval.update(num_samples=8, batch_size=4)  # the batches of the plan, so that nothing is compiled again
    monkeypatch.setattr(plan, "PAIRED_IMAGES", 4)
    monkeypatch.setattr(plan, "ROUNDS_IMAGES", (4, 8))
    monkeypatch.setattr(plan, "steps_within", lambda budget: {"ddim": budget})
    return config, tmp_path / "run", run_lib.plan(config, tmp_path / "run", 2)


def test_plan_is_written_and_taken(planned, capsys):
    """Catches a plan that leaves out the mixtures, does not state its cost, or changes nothing in a later run."""
    config, workdir, path = planned
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert {(entry["sampler"], entry["components"]) for entry in stored["entries"]} == {
        ("ddim", ONE),
        ("ddim", "labels"),
    }
    assert stored["best"] == stored["entries"][0] and stored["runner_up"] == stored["entries"][1]
    assert stored["network_calls"] > 2 * 4 * len(stored["entries"])
    assert path.with_suffix(".png").exists()
    plan_file.apply(config, path)
    result = run_lib.evaluate(config, workdir)
    best = stored["best"]
    assert [result[name] for name in ("sampler", "n_steps", "t_start")] == [
        best[name] for name in ("sampler", "n_steps", "t_start")
    ]
    assert result.get("components", ONE) == best["components"]
    [run] = [run for run in sweep_configs(config, (2,), expand_starts(config.sweep.t_starts)) if run.sampling.gls]
    assert [run.sampling[name] for name in plan_file.FIELDS] == [best[name] for name in plan_file.FIELDS]


def test_what_cannot_be_planned_is_refused(config, tmp_path):
    """Catches a traceback for a wrong budget, a file that is no plan, or the plan of another data set."""
    for budget in (0, -3, 1001):
        with pytest.raises(UserError, match="from 1 to model.num_scales=1000"):
            run_lib.plan(config, tmp_path, budget)
    path = tmp_path / "plan.json"
    path.write_text('{"budget": 3}', encoding="utf-8")
    with pytest.raises(UserError, match="is not a plan"):
        plan_file.apply(config, path)
    best = {"sampler": "ddim", "n_steps": 2, "components": "1", "t_start": 300, "spacing": "linear"}
    path.write_text(json.dumps({"dataset": "mnist", "best": best}), encoding="utf-8")
    with pytest.raises(UserError, match="is for data.dataset='mnist'"):
        plan_file.apply(config, path)
    path.write_text(json.dumps({"dataset": "digits", "best": best | {"n_steps": "two"}}), encoding="utf-8")
    with pytest.raises(UserError, match="plan again"):
        plan_file.apply(config, path)
