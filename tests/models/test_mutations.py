"""Damaged files of all kinds that can be imported: every one is read, or ends in one line.

With 10,000 files: python -c "from tests.models.test_mutations import main; main(10_000)"
"""

import gzip
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import imported
from configs.validation import validate
from core.errors import UserError
from core.files import write_json
from models import Params, abstract_params, edm_file, guided_file, score_sde_file, unet2d_file, weights
from models.diffusers_folder import WEIGHTS
from models.diffusers_schedule import SCHEDULER
from tests.models.test_score_sde_file import write_port
from tests.models.test_unet2d import SMALL, write_network

DATA = Path(__file__).parents[1] / "data"
ODD = [None, True, -1, 0, 3.5, 10**9, -(10**30), 1e308, float("nan"), "x", "", [], [[1]], [10**9], {}, {"a": 1}]


class Kind(NamedTuple):
    """A foreign network: what --source names, its files, and the function that reads its weights."""

    source: Path
    files: list[Path]
    load: Callable[[Path, ConfigDict], Params | tuple[int, Params]]


def kinds(folder: Path) -> Iterator[Kind]:
    """One network of each kind, written into the folder."""
    for name in ("edm", "flax", "port", "guided"):
        (folder / name).mkdir()
    edm = folder / "edm/VE_B.pkl"
    edm.write_bytes((DATA / "edm/VE_B.pkl").read_bytes())
    yield Kind(edm, [edm], edm_file.load_edm)
    flax = folder / "flax/checkpoint_1"
    flax.write_bytes(gzip.decompress((DATA / "score_sde/ncsnpp.gz").read_bytes()))
    beside = folder / "flax/config.json"
    beside.write_bytes((DATA / "score_sde/ncsnpp.json").read_bytes())
    yield Kind(flax, [flax, beside], score_sde_file.load_score_sde)
    port = folder / "port/checkpoint.pth"
    beside = folder / "port/config.json"
    with np.load(DATA / "score_sde/port.npz") as file:
        write_port(port, json.loads(str(file["ve_shapes"])))
        beside.write_text(str(file["ve_config"]))
    yield Kind(port, [port, beside], score_sde_file.load_score_sde)
    guided = folder / "guided/model.pt"
    guided.write_bytes(gzip.decompress((DATA / "guided_diffusion/model.pt.gz").read_bytes()))
    beside = folder / "guided/config.json"
    beside.write_bytes((DATA / "guided_diffusion/config.json").read_bytes())
    yield Kind(guided, [guided, beside], guided_file.load_guided)
    unet = folder / "unet"
    write_network(unet, SMALL)
    write_json(unet / SCHEDULER, {"beta_schedule": "scaled_linear", "clip_sample": False})
    yield Kind(unet, [unet / WEIGHTS, unet / "config.json", unet / SCHEDULER], unet2d_file.load_unet2d)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The content with bytes changed, removed, added or moved, more often near its ends."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 3])):
        end = max(len(changed), 1)
        at = rng.choice([rng.randrange(end), rng.randrange(min(end, 3000)), max(end - rng.randrange(1, 3000), 0)])
        length = rng.choice([1, 1, 2, 8, 100])
        other = rng.randrange(end)
        removed = changed[at : at + length]
        changed[at : at + length] = rng.choice(
            [rng.randbytes(len(removed)), b"", removed + rng.randbytes(length), changed[other : other + length]]
        )
        if rng.random() < 0.1:
            del changed[at:]
    return bytes(changed)


def mutated_json(content: bytes, rng: random.Random) -> bytes:
    """The content with one value missing, or replaced by an odd one."""
    value = node = json.loads(content)
    key = rng.choice(list(node))
    while isinstance(node[key], dict) and node[key] and rng.random() < 0.9:
        node = node[key]
        key = rng.choice(list(node))
    if rng.random() < 0.15:
        del node[key]
    else:
        node[key] = rng.choice(ODD)
    return json.dumps(value).encode()


def read(kind: Kind, config: ConfigDict | None) -> None:
    """Reads the network as an import does. config: None to take it from the files."""
    if config is None:
        config = imported.get_config(str(kind.source))
        validate(config)
    kind.load(kind.source, config)


def read_mutated(folder: Path, count: int, seed: int = 0) -> Counter[tuple[str, str]]:
    """Reads `count` mutated files; the numbers of those that were read and refused, by kind."""
    rng = random.Random(seed)
    networks = list(kinds(folder))
    configs = [imported.get_config(str(kind.source)) for kind in networks]
    outcomes = Counter()
    for i in range(count):
        kind = networks[i % len(networks)]
        file = rng.choice(kind.files)
        content = file.read_bytes()
        described = file.suffix in (".json", ".pkl")  # these files say what the network is
        mutate = mutated_json if file.suffix == ".json" and rng.random() < 0.8 else mutated
        file.write_bytes(mutate(content, rng))
        try:
            read(kind, None if described else configs[i % len(networks)])
            outcome = "read"
        except UserError as error:
            outcome = "refused"
            assert "\n" not in str(error), (i, file, error)
        except Exception as error:
            raise AssertionError(f"mutation {i} of {file}") from error
        outcomes[kind.source.name, outcome] += 1
        file.write_bytes(content)
    return outcomes


def build_once(patch: pytest.MonkeyPatch) -> None:
    """Builds networks once for each config; this is most of the time that an import of a small file takes."""
    built = {}

    def abstract(config):
        key = config.model.to_json() + config.data.to_json()
        if key not in built:
            built[key] = abstract_params(config)
        return built[key]

    for module in (weights, score_sde_file, guided_file, unet2d_file):
        patch.setattr(module, "abstract_params", abstract)


def test_only_one_line_comes_out(tmp_path, monkeypatch):
    """Catches any exception but UserError, for files that are cut, edited or that name a network of absurd size."""
    build_once(monkeypatch)
    outcomes = read_mutated(tmp_path, 100)
    assert sum(count for (_, outcome), count in outcomes.items() if outcome == "refused") > 40


def main(count: int) -> None:
    """Prints the outcomes of `count` mutations."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        build_once(patch)
        print(dict(read_mutated(Path(folder), count)))
