"""The explorer: one self-contained HTML page that shows samples, scores and score curves of the runs of a sweep."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from core import files, plots
from core.errors import warn
from core.shapes import HostPixels
from metrics.results import Result, folder_name

TEMPLATE = Path(__file__).with_name("explorer.html")
MOST_BYTES = 5_000_000
COLUMNS = 6  # samples per row in the picture of a run
SHOWN = (36, 24, 18, 12, 6, 3, 1)  # samples per run: the largest number is used whose page fits into MOST_BYTES


def save_explorer(path: Path, results: Sequence[Result], folder: Path) -> None:
    """Writes the page; `folder` contains the folders of the runs, with their samples.

    Runs with a sampling.baseline are left out. If a page with one sample of each run exceeds MOST_BYTES, this function
    prints a warning and writes nothing.
    """
    runs = [run for run in results if not run["baseline"]]
    samples = [files.read_npz(folder / folder_name(run) / "samples.npz", required={"images"})["images"] for run in runs]
    for count in SHOWN:
        page = _page(runs, [images[:count] for images in samples])
        if len(page.encode()) <= MOST_BYTES:
            files.write_text(path, page)
            return
    warn(f"no {path}: {len(runs)} runs do not fit into {MOST_BYTES:,} bytes")


def _page(runs: Sequence[Result], samples: Sequence[HostPixels]) -> str:
    data = {
        "score_name": runs[0]["score_name"],
        "num_samples": runs[0]["num_samples"],
        "last": max(run["t_start"] for run in runs),
        "shown": len(samples[0]),
        "runs": [_entry(run, images) for run, images in zip(runs, samples, strict=True)],
    }
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # "</script>" would end the data
    return TEMPLATE.read_text(encoding="utf-8").replace("DATA", text, 1)


def _entry(run: Result, images: HostPixels) -> dict[str, str | int | float | bool | None]:
    """The data of a run that the page shows."""
    return {
        "sampler": run["sampler"],
        "n": run["n_steps"],
        "nfe": run["nfe"],
        "components": run.get("components", "1"),
        "full": not run["gls"],
        "t": run["t_start"],
        "kind": ", automatic" if run["chooses_start"] else "",
        "score": run["score"],
        "error": run["score_error"] or 0.0,
        "image": _data_url(plots.image_grid(images, columns=min(COLUMNS, len(images)))),
    }


def _data_url(image: HostPixels) -> str:
    """The picture as a lossless WebP inside a URL."""
    file = io.BytesIO()
    picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    picture.save(file, "WEBP", lossless=True, quality=90)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
