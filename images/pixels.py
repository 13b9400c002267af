"""Converts one picture file to uint8 pixels: format, orientation, colours, centre crop, antialiased resize."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from core.shapes import ImageShape
from images.content import FORMATS, FORMATS_TEXT, head, unread_format

GREY_MODES = {"1", "L", "LA", "I", "I;16", "I;16B", "I;16L"}  # Pillow's names
NEW_SUBFILE_TYPE = 254  # a TIFF tag
REDUCED = 1  # the bit of this tag that marks a reduced copy of another image in the file


def open_picture(file: Path | io.BytesIO) -> Image.Image:
    """Opens a picture in one of content.FORMATS. The content of the file determines the format, not its name.

    Raises ValueError for any other content, and OSError if the file cannot be read. `upright` decodes the picture, and
    may raise any exception if the file is damaged.
    """
    try:
        picture = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        start = file.getvalue() if isinstance(file, io.BytesIO) else head(file)[0]
        if unread := unread_format(start):
            raise ValueError(f"{unread} is not read; convert it to PNG or JPEG") from error
        raise ValueError(f"not a readable picture ({FORMATS_TEXT})") from error
    _rescale_transparency(picture)
    return picture


def _rescale_transparency(picture: Image.Image) -> None:
    """Rescales the transparent colour of a PNG where Pillow rescales its pixels (2, 4 and 16 bits per channel)."""
    transparent = picture.info.get("transparency")
    raw_mode = picture.tile[0].args if picture.format == "PNG" and picture.tile else ""
    if raw_mode in ("L;2", "L;4") and isinstance(transparent, int):
        picture.info["transparency"] = transparent * {"L;2": 85, "L;4": 17}[raw_mode]
    elif raw_mode == "RGB;16B" and isinstance(transparent, tuple):
        picture.info["transparency"] = tuple(level >> 8 for level in transparent)


def upright(picture: Image.Image) -> Image.Image:
    """The decoded picture, rotated by its EXIF orientation tag.

    Raises ValueError for animations, for levels of 32 bits (their range is not known), and for the preview of a raw
    photograph.
    """
    if getattr(picture, "is_animated", False) and picture.format != "MPO":  # an MPO is a JPEG with a preview image
        raise ValueError(f"holds {picture.n_frames} frames; only still pictures are read")
    if picture.mode == "F" or (picture.mode == "I" and picture.format != "PPM"):  # Pillow opens 16-bit PPM as I
        raise ValueError("holds levels of 32 bits; only 8 and 16 bits are read")
    if picture.format == "TIFF" and picture.tag_v2.get(NEW_SUBFILE_TYPE, 0) & REDUCED:
        raise ValueError("holds the preview of a raw photograph; convert it to PNG or JPEG")
    return ImageOps.exif_transpose(picture)


def in_colours(picture: Image.Image, channels: int) -> Image.Image:
    """Converts a picture to 8-bit grey (channels=1) or RGB (channels=3).

    Transparent pixels are blended with white, palette indices are replaced by their colours, and 16-bit levels are
    divided by 257. Colour is converted to grey by ITU-R 601 luma, and grey to three equal channels.
    """
    if picture.mode.startswith("I"):  # 16-bit levels, which Pillow's own conversion would clip at 255
        levels = np.asarray(picture)
        transparent = levels == picture.info.get("transparency", -1)
        picture = Image.fromarray(np.where(transparent, 255, np.round(levels / 257)).astype(np.uint8))
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return picture.convert("L" if channels == 1 else "RGB")


def exact_pixels(picture: Image.Image, shape: ImageShape) -> UInt8[np.ndarray, "height width channels"]:
    """The pixels of a picture that already has the shape (height, width, channels).

    If `channels` is 1, a colour picture is also accepted if all its pixels are grey. Raises ValueError for another
    shape, and as `upright` does.
    """
    picture = upright(picture)
    pixels = np.asarray(in_colours(picture, 3))
    is_grey = picture.mode in GREY_MODES or (shape[2] == 1 and (pixels == pixels[..., :1]).all())
    channels = 1 if is_grey else 3
    if (picture.height, picture.width, channels) != shape:
        found = f"a {picture.mode} image of {picture.height} x {picture.width} pixels"
        raise ValueError(f"{found}, but the config requires height, width and channels {list(shape)}")
    return pixels[..., :channels]


def to_pixels(picture: Image.Image, shape: ImageShape, crop: int = 0) -> UInt8[np.ndarray, "height width channels"]:
    """The centre square of a picture, resized to `shape` = (size, size, channels).

    crop: side of the square in pixels; 0 means the shorter side of the picture. The resize is bilinear. If it makes the
    picture smaller, the filter is widened against aliasing, as by tf.image.resize(antialias=True) in score_sde's code.

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
