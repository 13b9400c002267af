"""The config of a workdir: --config=configs/stored.py:WORKDIR, used if --workdir is given without --config."""

from pathlib import Path

from ml_collections import ConfigDict

from configs.default import get_default_config
from core.errors import UserError
from core.files import read_json


def get_config(workdir: str | Path) -> ConfigDict:
    """The config that training or an import wrote into the workdir.

    Fields that were added to the program since then get their defaults. Raises UserError if there is no config, or if
    it has a field or a type of value that the program does not know.
    """
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise UserError(f"no {path}: train or import a network into this workdir first")
    config = get_default_config()
    try:
        config.update(read_json(path))
    except (AttributeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a config of this version ({reason})") from error
    return config
