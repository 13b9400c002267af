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
    elif path.is_dir() or path.suffix in (".safetensors", ".bin", ".json"):
        from models.unet2d_file import network_fields
    elif path.suffix == "" or (path.suffix == ".pth" and (path.parent / "config.json").exists()):
        from models.score_sde_file import network_fields
    else:
        raise UserError(
            f"--mode=import needs --config for {path}: only .pkl files of EDM, folders of diffusers and, with a "
            "config.json beside them, .pt files of improved- and guided-diffusion and checkpoints of score_sde "
            "describe their network"
        )
    config = get_default_config()
    try:
        config.update_from_flattened_dict(network_fields(path))
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: its network has arguments of wrong types ({reason})") from error
    return config
