"""The explorer page: its data, its size, and its behaviour in headless Chromium where that is installed."""

import base64
import html
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from core import files, plots
from metrics import explorer
from metrics.results import folder_name

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def run(sampler, n, t, score, **changed):
    settings = {"sampler": sampler, "n_steps": n, "nfe": n, "t_start": t, "gls": t != 999, "score": score}
    settings |= {"baseline": "", "chooses_start": False, "spacing": "linear", "clip_x0": False}
    settings |= {"feature_network": "classifier", "reference_file": None, "classifier": None, "checkpoint_step": 3}
    settings |= {"num_samples": 1000, "num_kept": 64, "eval_loss": None, "bits_per_dim": None, "seed": 1}
    return settings | {"score_name": "FD <of> tests", "score_error": 0.5} | changed


RUNS = [
    run("ddim", 3, 999, 40.0),
    run("ddim", 3, 500, 20.0),
    run("ddim", 3, 300, 30.0, chooses_start=True),
    run("ddim", 3, 400, 50.0, baseline="isotropic"),
    run("ddim", 10, 999, 8.0),
    run("ddim", 10, 500, 5.0),
    run("pndm", 3, 999, 90.0, nfe=None, score_error=None),
]


@pytest.fixture
def folder(tmp_path, rng):
    """Writes samples of RUNS: 64 pictures of 8x8 for each run, with colours that differ between the runs."""
    for one in RUNS:
        images = rng.integers(0, 256, (64, 8, 8, 3), np.uint8)
        files.write_npz(tmp_path / folder_name(one) / "samples.npz", {"images": images})
    return tmp_path


def data_of(path):
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.DOTALL)
    return json.loads(text[1])


def test_page_holds_every_run_with_its_own_samples(folder):
    """Catches a run that is left out, samples of another run, other pixels, and a name that ends the script."""
    explorer.save_explorer(folder / "explorer.html", RUNS, folder)
    data = data_of(folder / "explorer.html")
    kept = [one for one in RUNS if not one["baseline"]]
    assert data["score_name"] == "FD <of> tests" and data["shown"] == 36
    assert [(shown["sampler"], shown["n"], shown["t"], shown["score"]) for shown in data["runs"]] == [
        (one["sampler"], one["n_steps"], one["t_start"], one["score"]) for one in kept
    ]
    for one, shown in zip(kept, data["runs"], strict=True):
        images = files.read_npz(folder / folder_name(one) / "samples.npz", required={"images"})["images"]
        picture = Image.open(io.BytesIO(base64.b64decode(shown["image"].removeprefix("data:image/webp;base64,"))))
        np.testing.assert_array_equal(np.asarray(picture), plots.image_grid(images[:36], columns=6))
    text = (folder / "explorer.html").read_text("utf-8")
    assert not re.search(r"(src|href)=", text) and "FD <of>" not in text


def test_page_has_fewer_samples_where_there_are_many_runs(folder, monkeypatch, capsys):
    """Catches a page that is too large to send by mail, and an error after a sweep of hours."""
    monkeypatch.setattr(explorer, "MOST_BYTES", 45_000)
    explorer.save_explorer(folder / "explorer.html", RUNS, folder)
    assert (folder / "explorer.html").stat().st_size <= 45_000
    assert data_of(folder / "explorer.html")["shown"] in (6, 12, 18, 24)
    monkeypatch.setattr(explorer, "MOST_BYTES", 5000)
    explorer.save_explorer(folder / "none.html", RUNS, folder)
    assert "none.html: 6 runs do not fit into 5,000 bytes" in capsys.readouterr().err
    assert not (folder / "none.html").exists()


PROBE = """
<script>
const found = [];
const input = (id, value) => { at(id).value = value; at(id).dispatchEvent(new Event("input", { bubbles: true })); };
const note = () => found.push([at("where").textContent, at("score").textContent, at("samples").src,
  at("curve").querySelector(".now").getAttribute("cx")]);
note();
input("start", 1); note();
input("n", 10); note();
input("sampler", "pndm"); note();
const wide = document.documentElement.scrollWidth;
const controls = [...document.querySelectorAll("select, input")].filter(one => one.offsetParent);
const named = controls.every(one => one.tabIndex === 0 && one.labels.length === 1);
document.body.dataset.found = JSON.stringify({ found, wide, room: window.innerWidth, named });
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package chromium)")
@pytest.mark.parametrize("width", [400, 1400])
def test_page_in_chromium(folder, width):
    """Catches a script error, a slider that changes nothing, a page wider than the window, and unlabelled controls."""
    page = folder / "explorer.html"
    explorer.save_explorer(page, RUNS, folder)
    page.write_text(page.read_text("utf-8").replace("</body>", f"{PROBE}</body>"), "utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += [f"--window-size={width},900", "--enable-logging=stderr", "--virtual-time-budget=2000"]
    command += [f"--screenshot={folder / 'page.png'}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    dom = re.search(r'data-found="([^"]*)"', done.stdout)
    probe = json.loads(html.unescape(dom[1]))
    first, moved, longer, other = probe["found"]
    assert first[0] == "t = 999, pure noise" and first[1].startswith("FD <of> tests 40.00 ± 0.50; 3 network calls")
    assert moved[0] == "t = 500" and moved[1].startswith("FD <of> tests 20.00")
    assert longer[0] == "t = 500" and longer[1].startswith("FD <of> tests 5.000")
    assert other[0] == "t = 999, pure noise" and other[1].startswith("FD <of> tests 90.00; adaptive network calls")
    assert len({step[2] for step in probe["found"]}) == 4 and first[3] != moved[3]
    assert probe["named"] and probe["wide"] <= probe["room"]
