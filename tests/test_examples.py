"""Runs the examples and the notebook."""

import json

import matplotlib
import numpy as np
import pytest
from PIL import Image

import sampling
from core.files import REPOSITORY
from examples import foreign_eps_fn, one_dimensional


@pytest.fixture(autouse=True)
def no_windows():
    matplotlib.use("agg")


def test_one_dimensional_makes_the_papers_introduction(tmp_path):
    """Catches a missing picture, a well that never splits, or a late start that does not help."""
    one_dimensional.main(tmp_path)
    critical = json.loads((tmp_path / "critical.json").read_text())
    assert critical["theta_c"] == pytest.approx((2**0.5 - 1) ** 0.5, abs=1e-8)
    numbers = np.load(tmp_path / "bifurcation.npz")
    paths = np.load(tmp_path / "paths.npz")
    assert (numbers["stable"][numbers["t"] > critical["t_c"]] == 0).all()
    assert (numbers["stable"][numbers["t"] < critical["t_c"] - 1] > 0.05).all()
    for name in ("backward", "late_backward"):  # all paths end at the data, and both signs occur
        np.testing.assert_allclose(np.abs(paths[name][-1]), 1, atol=0.05)
        assert abs(paths[name][-1].mean()) < 0.4
    for sampler in ("ddpm", "ddim"):
        assert numbers[sampler].argmin() not in (0, len(numbers["t_start"]) - 1)
    animation = Image.open(tmp_path / "potential.gif")
    assert animation.n_frames > 30 and Image.open(tmp_path / "paths.png").width > 1000


def test_every_sampler_comes_nearer_to_a_foreign_models_data(capsys):
    """Catches axes in a wrong order, a Gaussian of other images, or a sampler missing from the table."""
    distances = foreign_eps_fn.main()
    assert distances.keys() == sampling.SAMPLERS.keys()
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table[2:-1]] == list(distances)
    full, late = distances.pop("ode")
    assert max(full, late) < 0.06  # the sampler has adaptive steps
    assert all(late < full / 2 for full, late in distances.values())


def test_notebook_runs_from_top_to_bottom():
    """Catches a cell that uses a removed name, and outputs stored in the file."""
    cells = json.loads((REPOSITORY / "examples/one_dimensional.ipynb").read_text())["cells"]
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]
            exec("".join(cell["source"]), names)
    assert names["alpha_bar"] == pytest.approx(2**0.5 - 1, abs=1e-8)
    names["pyplot"].close("all")
