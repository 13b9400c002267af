"""Reads UNet2DModels of diffusers, in any configuration, and writes their config.json."""

import dataclasses
import reprlib
from pathlib import Path
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from core.errors import UserError
from core.files import read_json
from models import Params, abstract_params
from models.diffusers_folder import find_settings, find_weights, read_weights
from models.diffusers_schedule import schedule_fields
from models.torch_names import unet2d_tensors
from models.unet2d import as_json, read_settings, settings_of
from models.weights import fill_renamed


def network_fields(source: Path) -> dict[str, Any]:
    """Returns the config fields of the network at `source`: a folder or pipeline of diffusers, or a file in one.

    Raises UserError if the folder is damaged, or if the network or its schedule is not supported.
    """
    file = find_settings(source)
    settings = read_settings(file, read_json(file))
    channels = settings.in_channels
    if settings.out_channels not in (channels, 2 * channels):
        raise UserError(f"{file}: out_channels is {settings.out_channels}, neither {channels} nor {2 * channels}")
    return {
        "model.name": "unet2d",
        "model.unet2d": as_json(settings),
        "model.label_dim": settings.num_class_embeds or 0,
        "model.learned_variance": settings.out_channels != channels,
        "data.num_channels": channels,
        "data.centered": not settings.center_input_sample,
        **_size_fields(file, settings.sample_size),
        **schedule_fields(file.parent),
    }


def _size_fields(file: Path, sample_size: Any) -> dict[str, int]:
    """The field of the image size, or no field if the network does not state a size."""
    if sample_size is None:
        return {}
    sides = sample_size if isinstance(sample_size, tuple) else (sample_size, sample_size)
    if len(sides) != 2 or sides[0] != sides[1] or not isinstance(sides[0], int):
        raise UserError(f"{file}: sample_size is {reprlib.repr(sample_size)}; only square images are supported")
    return {"data.image_size": sides[0]}


def load_unet2d(source: Path, config: ConfigDict) -> Params:
    """Loads the weights at `source` for the network of the config. Raises UserError as `fill_renamed` does."""
    weights = find_weights(source, find_settings(source))
    network = nnx.merge(*abstract_params(config))
    names = {tensor.path: (tensor.name, tensor.layout.load) for tensor in unet2d_tensors(network)}
    return fill_renamed(weights, config, read_weights(weights), names.__getitem__)


def unet2d_config(config: ConfigDict) -> dict[str, Any]:
    """Returns the content of diffusers' config.json for the network of the config."""
    return {"_class_name": "UNet2DModel"} | dataclasses.asdict(settings_of(config))
