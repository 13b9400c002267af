"""Pictures from three kinds of start, with the same random noise: pure noise, one Gaussian, a mixture.

python -m experiments.pictures [--config=emoji] [--workdir=PATH] [--dest=PATH]

--config names a file of configs/ddpm. The mixture must be fitted before: --mode=fid_stats
--config.sampling.components=40. Writes DEST/starts.png, with a row for each number of steps and start, and
DEST/starts.gif, with the predicted x_0 at each step. The images are the first ones that are drawn, without selection.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageDraw

import datasets
from configs.runs import without_scores
from core import plots
from core.files import replacing
from core.shapes import HostPixels
from evaluation import EvalRun
from experiments.runs import Experiment, main
from sampling.late_start import ONE

SAMPLER = "ddim"
SEED = 1
COMPONENTS = "40"  # sampling.components of the mixture
STEPS = (3, 5, 10)
COLUMNS = 16  # images in a row of starts.png
FRAME_COLUMNS = 12  # images in a row of starts.gif
FRAME_STEPS = 10
FRAME_SCALE = 2
MILLISECONDS = 350  # duration of a frame of starts.gif
LAST_MILLISECONDS = 2500  # duration of the last frame
LABEL_WIDTH = 120  # in pixels


class Start(NamedTuple):
    """A kind of start, and the time of the start for each number of steps."""

    label: str
    settings: dict[str, Any]
    times: dict[int, int | None]  # None: pure noise


STARTS = (
    Start("pure noise", {}, dict.fromkeys(STEPS)),
    Start("one Gaussian", {"components": ONE}, {3: 500, 5: 500, 10: 600}),
    Start(f"{COMPONENTS} Gaussians", {"components": COMPONENTS}, {3: 300, 5: 300, 10: 400}),
)


def draw_starts(experiment: Experiment, dest: Path) -> None:
    """Writes starts.png and starts.gif."""
    rows = []
    for n_steps in STEPS:
        for start in STARTS:
            settings = {"t_start": start.times[n_steps], **start.settings}
            timesteps, images = experiment.draw(SAMPLER, n_steps, seed=SEED, num=COLUMNS, **settings)
            rows.append((f"n = {n_steps}, {start.label} at {timesteps[0]}", images))
    plots.save_comparison(dest / "starts.png", rows)
    save_frames(dest / "starts.gif", [paths(experiment, start) for start in STARTS])
    print(f"pictures of the same noise from {len(STARTS)} kinds of start: {dest}/starts.png, starts.gif")


def paths(experiment: Experiment, start: Start) -> tuple[str, list[int], list[HostPixels]]:
    """Returns the label of the start, the times of the network calls, and the images x_0 predicted at each time."""
    settings = {"t_start": start.times[FRAME_STEPS], **start.settings}
    config = experiment.variant(SAMPLER, FRAME_STEPS, seed=SEED, num=FRAME_COLUMNS, **settings)
    run = EvalRun(config, experiment.context)
    timesteps, _ = run.plan()
    times, predicted = run.trajectory(timesteps, FRAME_COLUMNS)
    pixels = [np.asarray(datasets.to_uint8(x0, config.data.centered)) for x0 in predicted]
    return start.label, np.round(times).astype(int).tolist(), pixels


def save_frames(path: Path, rows: list[tuple[str, list[int], list[HostPixels]]]) -> None:
    """Saves an animation with one frame per step. Each of `rows` is (label, times, images at each time)."""
    frames = []
    for step in range(FRAME_STEPS):
        strips = [labelled(f"{label}\nt = {times[step]}", images[step]) for label, times, images in rows]
        frames.append(Image.fromarray(np.concatenate(strips)))
    durations = [MILLISECONDS] * (FRAME_STEPS - 1) + [LAST_MILLISECONDS]
    with replacing(path) as temporary:
        frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)


def labelled(label: str, images: HostPixels) -> np.ndarray:
    """Returns a row of images with a label at the left, as uint8 [height, width, 3]."""
    grid = plots.image_grid(images, columns=len(images))
    grid = grid.repeat(FRAME_SCALE, axis=0).repeat(FRAME_SCALE, axis=1)
    grid = np.broadcast_to(grid, (*grid.shape[:2], 3))
    margin = Image.new("RGB", (LABEL_WIDTH, len(grid)), "white")
    ImageDraw.Draw(margin).multiline_text((4, len(grid) // 2 - 14), label, fill="black", font_size=13)
    return np.concatenate([np.asarray(margin), grid], axis=1)


def with_mixture(config: ConfigDict, workdir: Path, dest: Path) -> None:
    """Runs `draw_starts` without scores."""
    draw_starts(Experiment(without_scores(config, COLUMNS), workdir, (ONE, COMPONENTS)), dest)


if __name__ == "__main__":
    main("experiments.pictures", __doc__, {"pictures": with_mixture}, ("emoji",), any_network=True)
