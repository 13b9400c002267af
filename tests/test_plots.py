import numpy as np
from PIL import Image

import plots
import tables


def test_grid_holds_every_image_in_reading_order():
    """Tiles transposed, an image lost from the last row, or a size that does not show."""
    images = np.stack([np.full((8, 8, 3), 10 * i, np.uint8) for i in range(1, 6)])
    grid = plots.image_grid(images)
    assert grid.shape == (2 * 34, 3 * 34, 3)
    assert grid[17::34, 17::34, 0].tolist() == [[10, 20, 30], [40, 50, 255]]


def test_saved_picture_has_the_same_pixels(tmp_path):
    for channels in (1, 3):
        image = np.arange(64 * channels, dtype=np.uint8).reshape(8, 8, channels)
        plots.save_image(tmp_path / "a.png", image)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")).reshape(image.shape), image)


def test_comparison_is_a_picture_with_a_row_each(tmp_path):
    rows = [(f"row {i}", np.zeros((4, 8, 8, 1), np.uint8)) for i in range(3)]
    plots.save_comparison(tmp_path / "a.png", rows)
    plots.save_comparison(tmp_path / "b.png", rows[:1])
    heights = [Image.open(tmp_path / name).height for name in ("a.png", "b.png")]
    assert 2.7 < heights[0] / heights[1] < 3.1  # each row takes the same height


def test_tables_align_and_quote():
    assert tables.aligned(("name", "n"), [("a", "10"), ("bcdef", "3")]) == "name    n\n-----  --\na      10\nbcdef   3"
    assert tables.to_csv(("a", "b"), [("x,y", 1.5)]) == 'a,b\n"x,y",1.5\n'
