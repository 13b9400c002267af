import contextlib

import numpy as np
import pytest
from PIL import Image

from core import files, plots, tables
from metrics import figures


def test_grid_holds_every_image_in_reading_order():
    """Catches transposed tiles, an image missing from the last row, or a wrong size."""
    images = np.stack([np.full((8, 8, 3), 10 * i, np.uint8) for i in range(1, 6)])
    grid = plots.image_grid(images)
    assert grid.shape == (2 * 34, 3 * 34, 3)
    assert grid[17::34, 17::34, 0].tolist() == [[10, 20, 30], [40, 50, 255]]


def test_saved_picture_has_the_same_pixels(tmp_path):
    """Catches a channel axis that is dropped, or a lossy format."""
    for channels in (1, 3):
        image = np.arange(64 * channels, dtype=np.uint8).reshape(8, 8, channels)
        plots.save_image(tmp_path / "a.png", image)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")).reshape(image.shape), image)


def test_comparison_is_a_picture_with_a_row_each(tmp_path):
    """Catches a missing row, or rows that share a fixed height."""
    rows = [(f"row {i}", np.zeros((4, 8, 8, 1), np.uint8)) for i in range(3)]
    plots.save_comparison(tmp_path / "a.png", rows)
    plots.save_comparison(tmp_path / "b.png", rows[:1])
    heights = [Image.open(tmp_path / name).height for name in ("a.png", "b.png")]
    assert 2.7 < heights[0] / heights[1] < 3.1  # each row takes the same height


@pytest.fixture
def drawn(monkeypatch):
    """Returns a list to which the axes of every picture that `panels` makes are added."""
    panels = plots.panels
    pictures = []

    @contextlib.contextmanager
    def kept(*args, **options):
        with panels(*args, **options) as axes:
            pictures.append(axes)
            yield axes

    monkeypatch.setattr(plots, "panels", kept)
    return pictures


def scored(sampler, n_steps, t_start, score, **other):
    facts = {"sampler": sampler, "n_steps": n_steps, "t_start": t_start, "gls": t_start < 999, "score": score}
    facts |= {"baseline": "", "chooses_start": False, "score_error": 1.0, "score_name": "FD", "num_samples": 7}
    return facts | other


def test_scores_are_a_panel_a_sampler_and_a_line_an_n(tmp_path, drawn):
    """Catches a line through scores of another sampler, a baseline or pure noise, or with unordered starts."""
    results = [scored("ddim", 3, t, s) for t, s in ((400, 2.0), (300, 4.0), (500, 3.0), (999, 50.0))]
    results += [scored("ddim", 3, 350, 2.5, chooses_start=True), scored("ddim", 3, 300, 9.0, baseline="afs")]
    results += [scored("ddpm", t + 1, t, s) for t, s in ((200, 6.0), (999, 1.0), (100, 7.0))]  # one step for every t
    figures.draw_scores(tmp_path / "a.png", results, {"rule": 413.0, "other": np.nan})
    [[ddim, ddpm]] = drawn[0]
    lines = {line.get_label(): line for line in ddim.get_lines()}
    assert lines["n = 3"].get_xydata().tolist() == [[300, 4], [400, 2], [500, 3]]
    assert lines["rule, t = 413"].get_xdata() == [413, 413] and not any("other" in label for label in lines)
    assert [[350, 2.5]] in [line.get_xydata().tolist() for line in ddim.get_lines() if line.get_marker() == "*"]
    [every_t] = [line for line in ddpm.get_lines() if line.get_label() == "n = t + 1"]
    assert every_t.get_xydata().tolist() == [[100, 7], [200, 6]]
    for axis, score in ((ddim, 50), (ddpm, 1)):
        assert [score, score] in [list(line.get_ydata()) for line in axis.get_lines() if line.get_linestyle() == "--"]
        assert axis.get_yscale() == "log" and axis.get_xlim()[0] > 500 > axis.get_xlim()[1] >= 0


def test_every_sampler_has_its_panel(tmp_path, drawn):
    """Catches a grid of panels with fewer panels than samplers."""
    samplers = [f"s{i}" for i in range(11)]
    figures.draw_scores(tmp_path / "a.png", [scored(name, 3, 400, 2.0) for name in samplers], {})
    assert [axis.get_title() for axis in drawn[0].flat if axis.figure] == samplers


def test_tables_align_and_quote():
    """Catches misaligned columns, trailing spaces, and an unquoted comma."""
    assert tables.aligned(("name", "n"), [("a", "10"), ("bcdef", "3")]) == "name    n\n-----  --\na      10\nbcdef   3"
    assert tables.to_csv(("a", "b"), [("x,y", 1.5)]) == 'a,b\n"x,y",1.5\n'


@pytest.mark.parametrize(
    "error", [ValueError("two\nlines"), ImportError("no font"), OSError(28, "disk"), MemoryError()]
)
def test_a_picture_that_fails_is_one_warning_line(tmp_path, capsys, error):
    """Catches an error of matplotlib, a font or the disk that ends the program, and an incomplete picture."""

    def draw(path, *contents):
        with files.replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    assert not plots.attempt(draw, tmp_path / "a.png", 1, 2)
    said = capsys.readouterr().err
    assert said.startswith(f"main.py: warning: {tmp_path}/a.png is not drawn ({type(error).__name__}")
    assert said.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_picture_that_succeeds_is_reported_as_drawn(tmp_path):
    """Catches a report that leaves out every picture."""
    assert plots.attempt(plots.save_grid, tmp_path / "a.png", np.zeros((4, 8, 8, 1), np.uint8))
    assert Image.open(tmp_path / "a.png").size == (68, 68)
