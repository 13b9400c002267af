"""One picture file to uint8 pixels: format, orientation, colours, centre crop, antialiased resize."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from core.shapes import ImageShape


def open_picture(file: Path | io.BytesIO) -> Image.Image:
    """Opens a PNG, JPEG or WebP picture; the format is taken from the content, not from the file name.

    Raises ValueError for any other content, and OSError if the file cannot be read. Decoding happens later, in
    `upright`, and may raise any exception if the file is damaged.
    """
    try:
        return Image.open(file, formats=("PNG", "JPEG", "WEBP"))
    except UnidentifiedImageError as error:
        raise ValueError("not a PNG, JPEG or WebP picture") from error


def upright(picture: Image.Image) -> Image.Image:
    """The decoded picture, rotated as its EXIF orientation tag demands. Raises ValueError for animations."""
    if getattr(picture, "is_animated", False) and picture.format != "MPO":  # MPO: a JPEG that contains its preview
        raise ValueError(f"holds {picture.n_frames} frames; only still pictures are read")
    return ImageOps.exif_transpose(picture)


def in_colours(picture: Image.Image, channels: int) -> Image.Image:
    """Converts a picture to 8-bit grey (channels=1) or RGB (channels=3).

    Transparent pixels are blended with white, palette numbers become their colours, and 16-bit levels are divided by
    257. Colours become grey by ITU-R 601 luma; grey becomes three equal colours.
    """
    if picture.mode.startswith("I;16"):  # Pillow's own conversion clips at 255
        picture = Image.fromarray(np.round(np.asarray(picture) / 257).astype(np.uint8))
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return picture.convert("L" if channels == 1 else "RGB")


def to_pixels(picture: Image.Image, shape: ImageShape, crop: int = 0) -> UInt8[np.ndarray, "height width channels"]:
    """The centre square of a picture, resized to `shape` = (size, size, channels).

    crop: side of the square in pixels; 0 takes the shorter side of the picture. The resize is bilinear; when it
    shrinks, the filter widens to avoid aliasing, as tf.image.resize(antialias=True) in score_sde's datasets.py.

    Raises ValueError for animations and if the picture is smaller than the crop.
    """
    size, _, channels = shape
    picture = in_colours(upright(picture), channels)
    side = crop or min(picture.size)
    left = (picture.width - side) // 2
    top = (picture.height - side) // 2
    if min(left, top) < 0:
        raise ValueError(f"{picture.width}x{picture.height} pixels, smaller than the crop of {side}x{side}")
    square = picture.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR)).reshape(shape)


def one_line(error: Exception) -> str:
    """The text of an exception in one line, or the name of its type if it has no text."""
    return " ".join(str(error).split()) or type(error).__name__
