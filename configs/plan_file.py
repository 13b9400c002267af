"""Reads plan.json, which --mode=plan writes. --plan=FILE puts the best sampler and start of the file into a config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from core.errors import UserError
from core.files import read_json

FIELDS = ("sampler", "n_steps", "components", "t_start", "spacing")  # the fields of config.sampling in a plan


def apply(config: ConfigDict, path: Path) -> None:
    """Sets the fields of config.sampling, and the runs of a sweep, to the best entry of a plan.

    Raises UserError if the file is not a plan, or if it was made for another data set.
    """
    stored = read_json(path)
    best = stored.get("best")
    if not isinstance(best, Mapping) or not set(FIELDS) <= set(best) or "dataset" not in stored:
        raise UserError(f"{path} is not a plan: --mode=plan --budget=N writes one")
    if stored["dataset"] != config.data.dataset:
        raise UserError(f"{path} is for data.dataset={stored['dataset']!r}, not {config.data.dataset!r}: plan again")
    chosen: dict[str, Any] = {name: best[name] for name in FIELDS}
    try:
        config.sampling.update(gls=True, baseline="", classes=(), **chosen)
        config.sweep.update(samplers=(chosen["sampler"],), n_steps=(chosen["n_steps"],), t_starts=(chosen["t_start"],))
        config.sweep.components = (chosen["components"],)
    except TypeError as error:
        raise UserError(f"{path}: {error}: plan again") from error
