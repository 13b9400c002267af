"""The config of a network in a file of other software: --config=configs/imported.py:FILE, used by --mode=import.

The file describes its network and the network's schedule, but not the data set. --config.data.dataset and the other
fields of data set it.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs.default import get_default_config
from core.errors import UserError


def get_config(source: str) -> ConfigDict:
    """The default config, with the fields that the file determines. Raises UserError if the file determines none."""
    path = Path(source).expanduser()
    if path.suffix == ".pkl":
        from models.edm_file import network_fields  # here: imports jax
    elif path.suffix == ".pt":
        from models.guided_file import network_fields
    elif path.suffix == "" and not path.is_dir():
        from models.score_sde_file import network_fields
    else:
        raise UserError(
            f"--mode=import needs --config for {path}: only .pkl files of EDM, and .pt files of improved- and "
            "guided-diffusion and checkpoints of score_sde with a config.json beside them, describe their network"
        )
    config = get_default_config()
    try:
        config.update_from_flattened_dict(network_fields(path))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: its network has arguments of wrong types ({error})") from error
    return config
