"""One picture file to uint8 pixels: format, orientation, colours, centre crop, antialiased resize."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from core.shapes import ImageShape
from images.content import FORMATS, FORMATS_TEXT, head, unread_format

GREY_MODES = {"1", "L", "LA", "I", "I;16", "I;16B", "I;16L"}  # of Pillow
NEW_SUBFILE_TYPE = 254  # a tag of TIFF
REDUCED = 1  # its bit that marks a smaller copy of another image in the file


def open_picture(file: Path | io.BytesIO) -> Image.Image:
    """Opens a picture of one of content.FORMATS; its content decides which, not the name of the file.

    Raises ValueError for any other content, and OSError if the file cannot be read. Decoding happens later, in
    `upright`, and may raise any exception if the file is damaged.
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
    """Brings the transparent colour of a PNG to the levels to which Pillow scales the pixels of these raw modes."""
    transparent = picture.info.get("transparency")
    raw_mode = picture.tile[0].args if picture.format == "PNG" and picture.tile else ""
    if raw_mode in ("L;2", "L;4") and isinstance(transparent, int):
        picture.info["transparency"] = transparent * {"L;2": 85, "L;4": 17}[raw_mode]
    elif raw_mode == "RGB;16B" and isinstance(transparent, tuple):
        picture.info["transparency"] = tuple(level >> 8 for level in transparent)


def upright(picture: Image.Image) -> Image.Image:
    """The decoded picture, rotated as its EXIF orientation tag demands.

    Raises ValueError for animations, for levels of 32 bits, whose range is not known, and for the preview of a raw
    photograph.
    """
    if getattr(picture, "is_animated", False) and picture.format != "MPO":  # MPO: a JPEG that contains its preview
        raise ValueError(f"holds {picture.n_frames} frames; only still pictures are read")
    if picture.mode == "F" or (picture.mode == "I" and picture.format != "PPM"):  # Pillow has 16-bit PPM as I
        raise ValueError("holds levels of 32 bits; only 8 and 16 bits are read")
    if picture.format == "TIFF" and picture.tag_v2.get(NEW_SUBFILE_TYPE, 0) & REDUCED:
        raise ValueError("holds the preview of a raw photograph; convert it to PNG or JPEG")
    return ImageOps.exif_transpose(picture)


def in_colours(picture: Image.Image, channels: int) -> Image.Image:
    """Converts a picture to 8-bit grey (channels=1) or RGB (channels=3).

    Transparent pixels are blended with white, palette numbers become their colours, and 16-bit levels are divided by
    257. Colours become grey by ITU-R 601 luma; grey becomes three equal colours.
    """
    if picture.mode.startswith("I"):  # 16 bits, which Pillow's own conversion clips at 255
        levels = np.asarray(picture)
        transparent = levels == picture.info.get("transparency", -1)
        picture = Image.fromarray(np.where(transparent, 255, np.round(levels / 257)).astype(np.uint8))
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return picture.convert("L" if channels == 1 else "RGB")


def exact_pixels(picture: Image.Image, shape: ImageShape) -> UInt8[np.ndarray, "height width channels"]:
    """A picture that has the shape (height, width, channels), without a resize.

    If `channels` is 1, colour pictures are also read if all their pixels are grey. Raises ValueError if the picture has
    another shape, or is an animation.
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
