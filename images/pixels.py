"""One picture to pixels: colours, centre crop, antialiased resize."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


def open_picture(file: Path | BinaryIO) -> Image.Image:
    """A PNG, JPEG or WebP, whatever its name says. Raises ValueError for anything else."""
    try:
        return Image.open(file, formats=("PNG", "JPEG", "WEBP"))
    except UnidentifiedImageError as error:
        raise ValueError("not a PNG, JPEG or WebP picture") from error


def to_pixels(picture: Image.Image, shape: tuple[int, int, int], crop: int = 0) -> np.ndarray:
    """uint8 pixels of `shape` [size, size, C]: the centre square, resized.

    crop: the side of the square; 0 takes the shorter side. The filter is a triangle that widens where the picture
    shrinks, as tf.image.resize(antialias=True) has it in score_sde's datasets.py; smaller pictures are enlarged. What a
    camera says about rotation is followed. Raises ValueError for animations and where the crop does not fit.
    """
    if getattr(picture, "is_animated", False) and picture.format != "MPO":  # a JPEG with its own preview
        raise ValueError(f"holds {picture.n_frames} frames; only still pictures are read")
    size, _, channels = shape
    picture = _in_colours(ImageOps.exif_transpose(picture), channels)
    side = crop or min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    if min(left, top) < 0:
        raise ValueError(f"{picture.width}x{picture.height} pixels hold no square of {side}")
    square = picture.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR)).reshape(shape)


def _in_colours(picture: Image.Image, channels: int) -> Image.Image:
    """Grey (1 channel) or RGB (3): transparency over white, palettes by their colours, 16 bits divided by 257.

    Colours become grey by ITU-R 601 luma, grey becomes three equal colours.
    """
    if picture.mode.startswith("I;16"):  # Pillow's own conversion cuts off at 255
        picture = Image.fromarray(np.round(np.asarray(picture) / 257).astype(np.uint8))
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return picture.convert("L" if channels == 1 else "RGB")
